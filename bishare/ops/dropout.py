"""Dropout of the update's input: a mask of one byte per value, drawn on the CPU from 16 random bits per value.

Srivastava et al., 2014. torch draws one float per value on the CPU, in one thread, which takes longer than the
products that follow; four values from one 64-bit draw by numpy take a tenth of that.

    x̂ = x ∘ keep,   update = (x̂ Aᵀ) / (1 - p)  Bᵀ

The factor 1 / (1 - p) goes to the r columns of x̂ Aᵀ, so that the values of x̂ are those of x, or zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_WORDS = 2**16
_BITS = {2: torch.int16, 4: torch.int32}


class Keep(NamedTuple):
    """Which values of an input are kept, and what makes up for the others."""

    mask: Tensor  # bool, of the input's shape
    factor: float
    """1 over the probability of being kept."""


def draw_keep(shape: Sequence[int], p: float, device: torch.device) -> Keep:
    """Draw which values are kept, from the device's default generator or, on the CPU, from one that it seeds.

    Args:
        shape: Shape of the input.
        p: Probability of dropping a value; on the CPU it is rounded to a multiple of 2^-16.
        device: Where the mask lies.
    """
    if device.type != "cpu":
        return Keep(torch.empty(*shape, dtype=torch.bool, device=device).bernoulli_(1 - p), 1 / (1 - p))
    dropped = min(round(p * _WORDS), _WORDS - 1)
    size = torch.Size(shape)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits = np.random.SFC64(seed).random_raw((size.numel() + 3) // 4)
    kept = bits.view(np.uint16)[: size.numel()] >= np.uint16(dropped)
    return Keep(torch.from_numpy(kept).view(size), _WORDS / (_WORDS - dropped))


def dropped(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, else zero; shapes and x's type kept."""
    if bits := _BITS.get(x.element_size()):
        # Times 1 or 0 in integers keeps the bits or clears them, four (fp32) to ten times as fast on the CPU.
        return (x.view(bits) * mask.view(torch.int8)).view(x.dtype)
    return x * mask
