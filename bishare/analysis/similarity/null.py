"""Unrelated updates of the same spread, for every measure of similarity to be read against.

Shapes: A [r, in], B [out, r], those of the update that is imitated.
"""

import math
from collections.abc import Mapping

import torch

from bishare.adapters.base import Factors, Slot
from bishare.analysis.similarity.entropy import moments


def random_updates(updates: Mapping[Slot, Factors], *, seed: int = 0) -> dict[Slot, Factors]:
    """For each update one of independent Gaussian factors, of the same rank and standard deviation of its entries."""
    generator = torch.Generator().manual_seed(seed)
    return {slot: random_update(like, generator) for slot, like in updates.items()}


def random_update(like: Factors, generator: torch.Generator) -> Factors:
    """One such update; zeros where the entries of the other are all equal."""
    A = torch.randn(like.A.shape, generator=generator)
    B = torch.randn(like.B.shape, generator=generator)
    drawn = moments(Factors(A, B), torch.float32)  # its mean is near 0, so nothing cancels in its variance
    return Factors(A, B.mul_(math.sqrt(moments(like).variance / drawn.variance)))
