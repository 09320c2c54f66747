"""Random updates of the same spread, the reference value of every measure of similarity.

Shapes: A [r, in], B [out, r], as of the imitated update.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.similarity.entropy import moments


def random_updates(updates: Mapping[Slot, Factors], *, seed: int = 0) -> dict[Slot, Factors]:
    """For each update, independent Gaussian factors of equal rank and equal standard deviation of the entries.

    The factors are drawn in parallel, each pair from a seed of its own: a single generator draws on a single core.
    """
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(updates))]
    with ThreadPoolExecutor() as threads:
        return dict(zip(updates, threads.map(random_update, updates.values(), generators), strict=True))


def random_update(like: Factors, generator: torch.Generator) -> Factors:
    """Gaussian factors of the rank and spread of ``like``; zeros if all entries of ``like`` are equal."""
    A = torch.randn(like.A.shape, generator=generator)
    B = torch.randn(like.B.shape, generator=generator)
    # In fp32: the mean is near 0, so nothing cancels in the variance.
    drawn = moments(Factors(A, B), torch.float32)
    return Factors(A, B.mul_(math.sqrt(moments(like).variance / drawn.variance)))
