"""Attention for packs: document by document, so that no dense block mask is built and no document sees another.

Registered with transformers under a name, and chosen by :func:`use_packed_attention`. The documents' bounds reach it
as ``documents``, an argument that models pass through; a batch without it takes transformers' own path through
``scaled_dot_product_attention``. A document that goes on behind tokens of the one before it (``data/packing.py``)
attends to that one's keys up to there, and to its own.

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
    """Let a decoder whose attention is exchangeable take packs; other models stay as they are."""
    if not model.config.is_encoder_decoder and model._supports_attention_backend and _is_causal(model):
        model.set_attn_implementation(NAME)


def patch_attention(model: nn.Module) -> str | None:
    """Train a model on the CPU through ``bishare.ops.causal_attention``, and return the name of its former attention.

    None if it stays as it is: in every other respect this attention is transformers' ``sdpa``, so it takes its place
    alone.
    """
    before = getattr(model.config, "_attn_implementation", None) if isinstance(model, PreTrainedModel) else None
    if isinstance(model, PreTrainedModel) and before == "sdpa" and trains_attention_on(model.device):
        use_packed_attention(model)
    return before if can_pack(model) and before != NAME else None


def _is_causal(model: PreTrainedModel) -> bool:
    """Every attention module is causal over the whole past: no window, no choice of keys by an index (DeepSeek-V3.2),
    no state that runs on between documents."""
    flags = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    config = model.config.get_text_config()
    chosen = any(getattr(config, name, None) is not None for name in ("sliding_window", "index_topk"))
    return bool(flags) and all(flags) and not chosen and not getattr(model, "_is_stateful", False)


class Documents(NamedTuple):
    """Where the documents of a pack are."""

    lengths: list[int]
    """Tokens of each, without those it shares with the one before it."""
    shared: list[int]
    """How many it shares with the one before it."""
    future: list[Tensor]
    """For each [length, shared + length]: True where a key comes after the query."""


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch goes into the model."""
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
        # A mask of four dimensions is handed on as it is; without one, models build the dense [n, n] mask of the pack.
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
            one = {"lengths": [query.shape[2]], "shared": [0]}
            return causal_attention(query, key, value, **one, scale=scaling), None
        forward: Any = sdpa_attention_forward
        result: tuple[Tensor, None] = forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    if fast:
        lengths, shared = documents.lengths, documents.shared
        return causal_attention(query, key, value, lengths=lengths, shared=shared, scale=scaling), None
    queries = torch.split(query, documents.lengths, 2)
    every_key, every_value = (with_prefixes(part, documents.lengths, documents.shared) for part in (key, value))
    outputs = []
    for q, k, v, future in zip(queries, every_key, every_value, documents.future, strict=True):
        # Of a whole document by its name, which has the fastest kernels.
        mask = {"is_causal": True} if q.shape[2] == k.shape[2] else {"attn_mask": ~future}
        output = F.scaled_dot_product_attention(
            q, k, v, **mask, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _is_whole(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, options: Mapping[str, Any]
) -> bool:
    """Whether every row is one document without padding, from its beginning."""
    plain = options.get("is_causal") is None and options.get("position_bias") is None
    causal = plain and attention_mask is None and getattr(module, "is_causal", False)
    return causal and query.shape[2] == key.shape[2] > 1


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
