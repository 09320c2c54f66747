"""How alike two updates are by their entropies, from the factors alone; the [out, in] matrix is never formed.

Zhou et al., "Bi-Share LoRA", ICML 2025, appendix A.2, eqs. 8-10, with the entries of an update X taken as samples of
one Gaussian variable (the code published with it says how the equations are meant):

    H(X) = ln(2 pi e var(X)) / 2          in nats, var with n - 1
    H(X, Y) = H(the entries of both)      the joint entropy
    RMI(X, Y) = (H(X) + H(Y) - H(X, Y)) / min(H(X), H(Y))

Only the number of entries, their sum and their sum of squares are needed, and for X = B A these are
sum = (1ᵀ B) (A 1) and sum of squares = trace((Bᵀ B) (A Aᵀ)).

The relative mutual information measures scale: two independent updates of equal spread have 1, of which one is twice
to four times as wide 0.96 to 0.94 (at a spread of 1e-3). It is therefore shown beside that of random factors.

Shapes: A [r, in], B [out, r].
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from bishare.adapters.factors import Factors


class Moments(NamedTuple):
    """What the Gaussian entropy of some numbers depends on."""

    num: int
    sum: float
    squares: float
    """Sum of the squares."""

    @property
    def variance(self) -> float:
        """Sample variance; 0 for equal numbers."""
        return max(0.0, self.squares - self.sum**2 / self.num) / (self.num - 1)


def moments(update: Factors, dtype: torch.dtype = torch.float64) -> Moments:
    """Moments of the entries of ``B A``, computed in this type."""
    A, B = (factor.detach().to("cpu", dtype) for factor in update)
    return Moments(
        num=B.shape[0] * A.shape[1],
        sum=float(B.sum(0) @ A.sum(1)),
        squares=float(((B.T @ B) * (A @ A.T)).sum()),
    )


def union(parts: Iterable[Moments]) -> Moments:
    """Moments of all entries together."""
    nums, sums, squares = zip(*parts, strict=True)
    return Moments(sum(nums), math.fsum(sums), math.fsum(squares))


def entropy(x: Moments) -> float:
    """Gaussian entropy in nats; minus infinity where all numbers are equal."""
    return 0.5 * math.log(2 * math.pi * math.e * x.variance) if x.variance else -math.inf


def joint_entropy(x: Moments, y: Moments) -> float:
    """Entropy of the entries of both, in nats."""
    return entropy(union((x, y)))


def relative_mutual_information(x: Moments, y: Moments) -> float:
    """Mutual information over the smaller entropy; not a number where one of them is all zeros."""
    own, other = entropy(x), entropy(y)
    return (own + other - joint_entropy(x, y)) / min(own, other)
