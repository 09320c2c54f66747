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

NAME = "bishare_packed"
SHORT = 512
"""Documents up to this length take matrix products in half precision on the CPU, where they beat its flash kernel."""


def can_pack(model: nn.Module) -> bool:
    """Whether the model's attention keeps the documents of a pack apart."""
    return isinstance(model, PreTrainedModel) and model.config._attn_implementation == NAME


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let a decoder whose attention is exchangeable take packs; other models stay as they are."""
    if not model.config.is_encoder_decoder and model._supports_attention_backend and _is_causal(model):
        model.set_attn_implementation(NAME)


def _is_causal(model: PreTrainedModel) -> bool:
    """Every attention module is causal over the whole past: no window, no state that runs on between documents."""
    flags = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    windowed = getattr(model.config, "sliding_window", None) is not None
    return bool(flags) and all(flags) and not windowed and not getattr(model, "_is_stateful", False)


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
    if documents is None:
        forward: Any = sdpa_attention_forward
        result: tuple[Tensor, None] = forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    queries = torch.split(query, documents.lengths, 2)
    every_key, every_value = _whole(key, documents), _whole(value, documents)
    short = query.device.type == "cpu" and query.dtype != torch.float32 and dropout == 0.0
    outputs = []
    for q, k, v, future in zip(queries, every_key, every_value, documents.future, strict=True):
        if short and k.shape[2] <= SHORT:
            output = _by_products(q, k, v, future, scaling)
        else:
            # Of a whole document by its name, which has the fastest kernels.
            mask = {"is_causal": True} if q.shape[2] == k.shape[2] else {"attn_mask": ~future}
            output = F.scaled_dot_product_attention(
                q, k, v, **mask, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _whole(part: Tensor, documents: Documents) -> list[Tensor]:
    """The keys or values [1, h_kv, shared + length, d] of each document, from those of the pack."""
    whole: list[Tensor] = []
    for own, shared in zip(torch.split(part, documents.lengths, 2), documents.shared, strict=True):
        whole.append(torch.cat((whole[-1][:, :, :shared], own), 2) if shared else own)
    return whole


def _by_products(query: Tensor, key: Tensor, value: Tensor, future: Tensor, scaling: float | None) -> Tensor:
    """Causal attention of one document by batched matrix products; heads that share a key are rows of one product."""
    _, heads, n, width = query.shape
    kv_heads, num_keys = key.shape[1:3]
    scale = width**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(kv_heads, heads // kv_heads * n, width)
    scores = torch.bmm(rows, key[0].transpose(1, 2)).view(heads, n, num_keys)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.bmm(weights.view(kv_heads, -1, num_keys), value[0]).view(1, heads, n, width)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
