"""How alike updates are as matrices: distances, cosine and linear CKA of all pairs, from the factors alone.

With the products of the factors ``A_i A_jᵀ`` and ``B_iᵀ B_j``, the inner product of two updates is the sum of their
elementwise product, <B_i A_i, B_j A_j> = sum(B_iᵀ B_j * A_i A_jᵀ), and nothing depends on the basis of the rank space.

Linear CKA (Kornblith et al., 2019, arXiv:1905.00414, eq. 3) compares two updates by which inputs they treat alike: the
columns of an update are the examples, centred, so it needs equal inputs only, and the outputs may be rotated.

Shapes: n updates, A [r, in], B [out, r], results [n, n] in float64; ranks may differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bishare.adapters.factors import Factors
from bishare.analysis.similarity.entropy import Moments

SMALL = 128
"""Rows of a Gram matrix below which halves take as long as the whole."""
BLOCK = 2048
"""Columns that are brought to float64 together."""
TINY = torch.finfo(torch.float64).tiny


class Geometry(NamedTuple):
    """All pairs of n updates of one shape."""

    inner: Tensor  # [n, n], <W_i, W_j>
    factor_inner: Tensor  # [n, n], <B_i, B_j>
    cka: Tensor  # [n, n], 0 to 1
    moments: list[Moments]
    """Of the entries of each update."""

    @property
    def cosine(self) -> Tensor:
        """-1 to 1, of the entries of the updates."""
        return cosine(self.inner)

    @property
    def effective(self) -> Tensor:
        """``|B_i A_i - B_j A_j|``, the distance that does not depend on the basis of the rank space."""
        return distance(self.inner)

    @property
    def l2(self) -> Tensor:
        """``|B_i - B_j|``, which says something only where both read one A (the score of ASLoRA)."""
        return distance(self.factor_inner)


def compare(updates: Sequence[Factors]) -> Geometry:
    """Compare all pairs of updates of one shape."""
    r, num_entries = _largest_rank(updates), updates[0].A.shape[1] * updates[0].B.shape[0]
    A, B = _products([update.A for update in updates], r), _products([update.B.T for update in updates], r)
    inner = (A.gram * B.gram).sum((1, 3))
    sums = (A.sums * B.sums).sum(1)
    return Geometry(
        inner=inner,
        factor_inner=torch.einsum("iaja->ij", B.gram),
        cka=_cka(A.centred(), torch.einsum("iaib->iab", B.gram)),
        moments=[Moments(num_entries, *pair) for pair in zip(sums.tolist(), inner.diagonal().tolist(), strict=True)],
    )


def linear_cka(updates: Sequence[Factors]) -> Tensor:
    """Linear CKA [n, n] of all pairs of updates that read one input; their outputs may differ."""
    r = _largest_rank(updates)
    A, of_each = _products([update.A for update in updates], r), [_products([update.B.T], r) for update in updates]
    return _cka(A.centred(), torch.stack([B.gram[0, :, 0] for B in of_each]))


def cosine(inner: Tensor) -> Tensor:
    """Cosines from inner products [n, n]; not a number beside a zero."""
    norms = inner.diagonal().clamp(min=0).sqrt()
    return inner / torch.outer(norms, norms)


def distance(inner: Tensor) -> Tensor:
    """Distances from inner products [n, n]."""
    squares = inner.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * inner).clamp(min=0).sqrt().fill_diagonal_(0)


def relative_distance(inner: Tensor) -> Tensor:
    """Distances over the mean of the two norms: 0 the same, 1.41 unrelated (of equal norm), 2 opposite."""
    norms = inner.diagonal().clamp(min=0).sqrt()
    return distance(inner) / ((norms[:, None] + norms[None, :]) / 2).clamp(min=TINY)


def _largest_rank(updates: Sequence[Factors]) -> int:
    return max(update.rank for update in updates)


class _Products(NamedTuple):
    """What the measures need of n matrices [r, k]."""

    gram: Tensor  # [n, r, n, r], the inner products of all rows
    sums: Tensor  # [n, r], of each row
    width: int

    def centred(self) -> Tensor:
        """The inner products [n, r, n, r] once the mean of each row is taken off."""
        return self.gram - self.sums[:, :, None, None] * self.sums[None, None] / self.width


def _products(matrices: Sequence[Tensor], r: int) -> _Products:
    """Products of matrices [<= r, k] in float64, filled up with rows of zeros, which change none.

    They are copied to float64 by blocks of columns: all at once, fresh memory would take as long as the products.
    """
    n, width = len(matrices), matrices[0].shape[1]
    gram, sums = torch.zeros(n * r, n * r, dtype=torch.float64), torch.zeros(n * r, dtype=torch.float64)
    block = torch.zeros(n, r, min(width, BLOCK), dtype=torch.float64)
    for start in range(0, width, BLOCK):
        columns = block[:, :, : width - start]
        for rows, matrix in zip(columns, matrices, strict=True):
            rows[: len(matrix)] = matrix.detach()[:, start : start + BLOCK]
        gram += _gram(columns.flatten(0, 1))
        sums += columns.sum(2).flatten()
    return _Products(gram.view(n, r, n, r), sums.view(n, r), width)


def _gram(rows: Tensor) -> Tensor:
    """``rows rowsᵀ`` [k, k]; one half is mirrored, which saves a third of the time."""
    if len(rows) <= SMALL:
        return rows @ rows.T
    upper, lower = rows.tensor_split(2)
    mixed = upper @ lower.T
    return torch.cat([torch.cat([_gram(upper), mixed], 1), torch.cat([mixed.T, _gram(lower)], 1)])


def _cka(gram_a: Tensor, gram_b: Tensor) -> Tensor:
    """From ``A_i A_jᵀ`` [n, r, n, r] of centred As, and ``B_iᵀ B_i`` [n, r, r].

    ``|W_i W_jᵀ|² = sum((B_iᵀ B_i) A_i A_jᵀ (B_jᵀ B_j) * A_i A_jᵀ)``, divided by its values for i with i and j with j.
    """
    weighted = torch.einsum("iab,ibjc->iajc", gram_b, gram_a)
    weighted = torch.einsum("iajc,jcd->iajd", weighted, gram_b)
    alike = (weighted * gram_a).sum((1, 3))
    norms = alike.diagonal().sqrt()
    return alike / torch.outer(norms, norms)
