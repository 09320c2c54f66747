"""Dropout of the update's input by a mask of a byte per value, drawn on a CPU from 16 random bits per value.

    x̂ = x ∘ keep        update = (x̂ Aᵀ) / (1 - p)  Bᵀ        (Srivastava et al., 2014)

On a CPU torch draws a float per value in a single thread, which takes longer than the products that follow. numpy
draws four values from 64 random bits in a tenth of the time. The factor 1 / (1 - p) goes to the r columns of x̂ Aᵀ, so
a value of x̂ is the value of x or zero.

Shapes: x, x̂, keep [..., in].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bishare.ops.dispatch import mask_type, uses_numpy_bits

_WORDS = 2**16


class Keep(NamedTuple):
    """Which values of an input are kept, and the factor that makes up for the dropped values."""

    mask: Tensor  # bool, of the input's shape
    factor: float
    """1 over the probability of being kept."""


def draw_keep(shape: Sequence[int], p: float, device: torch.device) -> Keep:
    """Draw which values are kept, from the device's default generator.

    On a CPU the default generator gives the seed of numpy's SFC64, from which the bits are drawn.

    Args:
        shape: Shape of the input.
        p: Probability of dropping a value; on a CPU rounded to a multiple of 2^-16.
        device: Where the mask lies.
    """
    if not uses_numpy_bits(device):
        return Keep(torch.empty(*shape, dtype=torch.bool, device=device).bernoulli_(1 - p), 1 / (1 - p))
    # At least the highest word is kept, so the factor stays finite.
    num_dropped = min(round(p * _WORDS), _WORDS - 1)
    size = torch.Size(shape)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits = np.random.SFC64(seed).random_raw((size.numel() + 3) // 4)
    kept = bits.view(np.uint16)[: size.numel()] >= np.uint16(num_dropped)
    return Keep(torch.from_numpy(kept).view(size), _WORDS / (_WORDS - num_dropped))


def dropped(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, else zero; shape and type as in x."""
    if (bits := mask_type(x)) is not None:
        # Times 1 or 0 in integers keeps the bits or clears them, four (fp32) to ten times as fast on a CPU.
        return (x.view(bits) * mask.view(torch.int8)).view(x.dtype)
    return x * mask
