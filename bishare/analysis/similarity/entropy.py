"""Gaussian entropies of updates and their mutual information, from A and B alone; the [out, in] matrix is never formed.

Zhou et al., "Bi-Share LoRA", ICML 2025, appendix A.2, eqs. 8-10. The entries of an update X are taken as samples of a
Gaussian variable, as in the code published with the paper:

    H(X) = ln(2 pi e var(X)) / 2          in nats, var with n - 1
    H(X, Y) = H(the entries of both)      the joint entropy
    RMI(X, Y) = (H(X) + H(Y) - H(X, Y)) / min(H(X), H(Y))

Only the number of entries, the sum and the sum of squares are needed. For X = B A, the sum is (1ᵀ B) (A 1) and the sum
of squares is trace((Bᵀ B) (A Aᵀ)).

The relative mutual information measures scale. Two independent updates of equal spread have 1; two independent updates
of spreads 1 : 2 to 1 : 4 have 0.96 to 0.94 (at a spread of 1e-3). So every figure has random factors beside the
adapter.

Shapes: A [r, in], B [out, r].
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from bishare.adapters.factors import Factors


class Moments(NamedTuple):
    """Moments of numbers; the Gaussian entropy depends on nothing else."""

    num: int
    sum: float
    squares: float
    """Sum of the squares."""

    @property
    def variance(self) -> float:
        """Sample variance; 0 for equal numbers."""
        # Rounding can make a variance of 0 negative.
        return max(0.0, self.squares - self.sum**2 / self.num) / (self.num - 1)


def moments(update: Factors, dtype: torch.dtype = torch.float64) -> Moments:
    """Moments of the entries of ``B A``, computed in ``dtype``.

    Args:
        update: A [r, in], B [out, r].
        dtype: Type of the products.
    """
    A, B = update.A.detach().to("cpu", dtype), update.B.detach().to("cpu", dtype)
    return Moments(
        num=B.shape[0] * A.shape[1],
        sum=float(B.sum(0) @ A.sum(1)),
        squares=float(((B.T @ B) * (A @ A.T)).sum()),
    )


def union(parts: Iterable[Moments]) -> Moments:
    """Moments of the union of several sets of numbers."""
    nums, sums, squares = zip(*parts, strict=True)
    return Moments(sum(nums), math.fsum(sums), math.fsum(squares))


def entropy(x: Moments) -> float:
    """Gaussian entropy in nats; minus infinity where all numbers are equal."""
    return 0.5 * math.log(2 * math.pi * math.e * x.variance) if x.variance else -math.inf


def joint_entropy(x: Moments, y: Moments) -> float:
    """Entropy of the entries of both updates in nats."""
    return entropy(union((x, y)))


def relative_mutual_information(x: Moments, y: Moments) -> float:
    """Mutual information over the smaller entropy; not a number where an update is all zeros."""
    h_x, h_y = entropy(x), entropy(y)
    return (h_x + h_y - joint_entropy(x, y)) / min(h_x, h_y)
