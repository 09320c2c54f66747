"""The spectrum of a low-rank update B A from A and B alone; the [out, in] matrix is never formed.

With thin QRs B = Qb Rb and Aᵀ = Qa Ra, ``B A = Qb (Rb Raᵀ) Qaᵀ`` has the singular values of the small ``Rb Raᵀ``.

Effective rank: exp(H(p)), p = s / sum(s), natural logarithm (Roy & Vetterli, "The effective rank", EUSIPCO 2007).
Numerical rank: the number of singular values above max(out, in) · eps(float32) · the largest, for any dtype.

Shapes: A [r, in], B [out, r], singular values [min(r, in, out)].
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bishare.adapters.factors import Factors

EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True, kw_only=True)
class UpdateRank:
    """Ranks and norm of an update, from its singular values."""

    numerical: int
    """Singular values distinguishable from zero in fp32."""
    effective: float
    """Number of directions that the update uses, weighted by size: 1 to ``numerical``, 0 for a zero update."""
    norm: float
    """Frobenius norm."""


def singular_values(factors: Factors) -> Tensor:
    """Singular values of ``B A``, largest first, in float64.

    Args:
        factors: A ``[..., r, in]``, B ``[..., out, r]``; the leading dimensions are a batch.

    Returns:
        ``[..., min(r, in, out)]``, on the device of the factors (on the CPU for MPS, which has no float64).
    """
    device = "cpu" if factors.A.device.type == "mps" else factors.A.device
    A = factors.A.detach().to(device, torch.float64)
    B = factors.B.detach().to(device, torch.float64)
    _, R_b = torch.linalg.qr(B, mode="r")  # [..., min(out, r), r]
    _, R_a = torch.linalg.qr(A.mT, mode="r")  # [..., min(in, r), r]
    values: Tensor = torch.linalg.svdvals(R_b @ R_a.mT)
    return values


def numerical_rank(values: Tensor, *, size: int) -> Tensor:
    """Number of singular values above ``size · eps(float32) · the largest``.

    Args:
        values: ``[..., k]``, largest first.
        size: The longer side of the matrix, max(out, in).
    """
    return (values > size * EPS * values[..., :1]).sum(dim=-1)


def effective_rank(values: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values; 0 where all values are 0.

    Args:
        values: ``[..., k]``.
    """
    total = values.sum(dim=-1, keepdim=True)
    # A zero update is divided by 1; xlogy is 0 at 0.
    share = values / total.where(total > 0, 1.0)
    entropy = -torch.special.xlogy(share, share).sum(dim=-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


def measure(updates: Sequence[Factors]) -> list[UpdateRank]:
    """Ranks and norm of each update, in order; updates of equal shape are measured in a batch."""
    same_shape: dict[tuple[torch.Size, torch.Size], list[int]] = defaultdict(list)
    for index, factors in enumerate(updates):
        same_shape[factors.A.shape, factors.B.shape].append(index)

    measured: dict[int, UpdateRank] = {}
    for (shape_a, shape_b), indices in same_shape.items():
        A, B = zip(*map(updates.__getitem__, indices), strict=True)
        values = singular_values(Factors(torch.stack(A), torch.stack(B)))
        columns = (
            numerical_rank(values, size=max(shape_a[-1], shape_b[-2])).tolist(),
            effective_rank(values).tolist(),
            values.square().sum(dim=-1).sqrt().tolist(),
        )
        for index, numerical, effective, norm in zip(indices, *columns, strict=True):
            measured[index] = UpdateRank(numerical=numerical, effective=effective, norm=norm)
    return [measured[index] for index in range(len(updates))]
