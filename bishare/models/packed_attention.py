"""Attention for packs, document by document: no dense block mask is built, and documents stay apart.

The function is registered with transformers under a name and chosen by :func:`use_packed_attention`. Models pass the
bounds of the documents on, in the argument ``documents``. A batch without ``documents`` takes transformers' own path
through ``scaled_dot_product_attention``. A document may continue a prefix of the document before
(``data/packing.py``), and then attends to the keys of the prefix and to its own keys.

Shapes: query [1, h, n, d], key and value [1, h_kv, n, d], result [1, n, h, d]; h is a multiple of h_kv.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bishare.ops.causal_attention import causal_attention, with_prefixes
from bishare.ops.dispatch import trains_attention_on, uses_causal_attention

NAME = "bishare_packed"


def can_pack(model: nn.Module) -> bool:
    """Whether the model's attention keeps the documents of a pack apart."""
    return isinstance(model, PreTrainedModel) and model.config._attn_implementation == NAME


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let a causal decoder with exchangeable attention take packs; any other model stays unchanged."""
    if not model.config.is_encoder_decoder and model._supports_attention_backend and _is_causal(model):
        model.set_attn_implementation(NAME)


def patch_attention(model: nn.Module) -> str | None:
    """Train a model on a CPU through ``bishare.ops.causal_attention``.

    Only transformers' ``sdpa`` is replaced, since the replacement equals ``sdpa`` outside training.

    Returns:
        Name of the replaced attention; None if nothing was replaced.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    before: str | None = getattr(model.config, "_attn_implementation", None)
    if before == "sdpa" and trains_attention_on(model.device):
        use_packed_attention(model)
    return before if can_pack(model) and before != NAME else None


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether every attention module is causal over the whole past."""
    flags = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    config = model.config.get_text_config()
    # A sliding window, or a choice of keys by an index (DeepSeek-V3.2), leaves out a part of the past.
    for name in ("sliding_window", "index_topk"):
        if getattr(config, name, None) is not None:
            return False
    # A recurrent state would run on from document to document.
    return bool(flags) and all(flags) and not getattr(model, "_is_stateful", False)


class Documents(NamedTuple):
    """The bounds of the documents in a pack."""

    lengths: list[int]
    """Own tokens of each document, without the shared prefix."""
    shared: list[int]
    """Tokens of the prefix that each document shares with the document before."""
    future: list[Tensor]
    """For each document [length, shared + length]: True where a key comes after the query."""


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model's forward pass, from a batch."""
    if "lengths" not in batch:
        return {name: batch[name] for name in ("input_ids", "attention_mask")}
    device = batch["input_ids"].device
    lengths, shared = batch["lengths"].tolist(), batch["shared"].tolist()
    future = [
        torch.ones(n, start + n, dtype=torch.bool, device=device).triu(start + 1)
        for n, start in zip(lengths, shared, strict=True)
    ]
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        # Models hand a mask of four dimensions on unchanged, and would otherwise build the pack's dense [n, n] mask.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "documents": Documents(lengths, shared, future),
    }


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface; causal inside every document."""
    fast = uses_causal_attention(query, key, value, dropout=dropout)
    if documents is None:
        if fast and _is_whole(module, query, key, attention_mask, kwargs):
            return causal_attention(query, key, value, lengths=[query.shape[2]], shared=[0], scale=scaling), None
        forward: Any = sdpa_attention_forward
        result: tuple[Tensor, None] = forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    if fast:
        lengths, shared = documents.lengths, documents.shared
        return causal_attention(query, key, value, lengths=lengths, shared=shared, scale=scaling), None
    queries = torch.split(query, documents.lengths, 2)
    keys = with_prefixes(key, documents.lengths, documents.shared)
    values = with_prefixes(value, documents.lengths, documents.shared)
    outputs = []
    for q, k, v, future in zip(queries, keys, values, documents.future, strict=True):
        # A document without a prefix takes is_causal, which has faster kernels than a mask.
        mask = {"is_causal": True} if q.shape[2] == k.shape[2] else {"attn_mask": ~future}
        output = F.scaled_dot_product_attention(
            q, k, v, **mask, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _is_whole(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, options: Mapping[str, Any]
) -> bool:
    """Whether every row is a single whole document without padding."""
    plain = options.get("is_causal") is None and options.get("position_bias") is None
    causal = plain and attention_mask is None and getattr(module, "is_causal", False)
    return causal and query.shape[2] == key.shape[2] > 1


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
