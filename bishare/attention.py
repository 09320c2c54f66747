"""Attention for packs: document by document, so that no dense block mask is built and no document sees another.

Registered with transformers under a name, and chosen by :func:`use_packed_attention`. The boundaries reach it as
``cu_seq_lens_q``, the argument that models pass through to variable-length flash attention; a batch without it takes
transformers' own path through ``scaled_dot_product_attention``.

Shapes: query [1, h, n, d], key and value [1, h_kv, n, d], result [1, n, h, d]; h is a multiple of h_kv.
"""

from collections.abc import Mapping
from typing import Any

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


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch goes into the model."""
    if "lengths" not in batch:
        return {name: batch[name] for name in ("input_ids", "attention_mask")}
    lengths = batch["lengths"]
    ends = F.pad(torch.cumsum(lengths, 0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        # A mask of four dimensions is handed on as it is; without one, models build the dense [n, n] mask of the pack.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=lengths.device),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface; causal inside every document."""
    if cu_seq_lens_q is None:
        forward: Any = sdpa_attention_forward
        result: tuple[Tensor, None] = forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    lengths = torch.diff(cu_seq_lens_q).tolist()
    documents = zip(*(torch.split(part, lengths, 2) for part in (query, key, value)), strict=True)
    short = query.device.type == "cpu" and query.dtype != torch.float32 and dropout == 0.0
    outputs = [
        _by_products(q, k, v, scaling)
        if short and q.shape[2] <= SHORT
        else F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in documents
    ]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


def _by_products(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention of one document by batched matrix products; heads that share a key are rows of one product."""
    _, heads, n, width = query.shape
    kv_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(kv_heads, heads // kv_heads * n, width)
    scores = torch.bmm(rows, key[0].transpose(1, 2)).view(heads, n, n)
    future = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.bmm(weights.view(kv_heads, -1, n), value[0]).view(1, heads, n, width)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
