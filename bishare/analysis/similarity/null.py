"""Unrelated updates of the same spread, for every measure of similarity to be read against.

Shapes: A [r, in], B [out, r], those of the update that is imitated.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.similarity.entropy import moments


def random_updates(updates: Mapping[Slot, Factors], *, seed: int = 0) -> dict[Slot, Factors]:
    """For each update one of independent Gaussian factors, of the same rank and standard deviation of its entries.

    They are drawn side by side, each from its own seed, since one generator draws on one core.
    """
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(updates))]
    with ThreadPoolExecutor() as threads:
        return dict(zip(updates, threads.map(random_update, updates.values(), generators), strict=True))


def random_update(like: Factors, generator: torch.Generator) -> Factors:
    """One such update; zeros where the entries of the other are all equal."""
    A = torch.randn(like.A.shape, generator=generator)
    B = torch.randn(like.B.shape, generator=generator)
    drawn = moments(Factors(A, B), torch.float32)  # its mean is near 0, so nothing cancels in its variance
    return Factors(A, B.mul_(math.sqrt(moments(like).variance / drawn.variance)))
