"""Numbers of values and bytes, from shapes alone."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from bishare.adapters.factors import Slot

LORA_RANK = 8
"""Rank of the plain LoRA that every count is compared with, as in the papers' tables."""


def num_lora_values(slots: Sequence[Slot], rank: int = LORA_RANK) -> int:
    """Values of a LoRA of rank ``rank`` on the weights ``slots``: the sum of ``rank * (in + out)``."""
    return sum(rank * (slot.in_features + slot.out_features) for slot in slots)


def num_values(parameters: Iterable[nn.Parameter]) -> int:
    """Values of all parameters together; ZeRO-3 leaves an empty tensor in place and keeps the size in ``ds_numel``."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
