"""Distances, cosines and linear CKA of all pairs of updates, from A and B alone.

The inner product of two updates is the sum of an elementwise product of products of their factors,
<B_i A_i, B_j A_j> = sum(B_iᵀ B_j * A_i A_jᵀ). The inner product does not depend on the basis of the rank space.

Linear CKA (Kornblith et al., 2019, arXiv:1905.00414, eq. 3) takes the centred columns of an update as examples. Two
updates are similar if both map the same inputs to similar outputs, up to a rotation of the outputs. So only the inputs
of the two updates must be equal.

Shapes: n updates, A [r, in], B [out, r], results [n, n] in float64; ranks may differ.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bishare.adapters.factors import Factors
from bishare.analysis.similarity.entropy import Moments

SMALL = 128
"""Largest number of rows of a Gram matrix that is computed whole: halves would take as long."""
BLOCK = 2048
"""Columns converted to float64 at a time."""
TINY = torch.finfo(torch.float64).tiny


class Geometry(NamedTuple):
    """All pairs of n updates of the same shape, W = B A."""

    inner: Tensor  # [n, n], <W_i, W_j>
    factor_inner: Tensor  # [n, n], <B_i, B_j>
    cka: Tensor  # [n, n], 0 to 1
    moments: list[Moments]
    """Moments of the entries of each update."""

    @property
    def cosine(self) -> Tensor:
        """Cosines of the updates [n, n], -1 to 1."""
        return cosine(self.inner)

    @property
    def effective(self) -> Tensor:
        """Distances ``|B_i A_i - B_j A_j|`` [n, n], independent of the basis of the rank space."""
        return distance(self.inner)

    @property
    def l2(self) -> Tensor:
        """Distances ``|B_i - B_j|`` [n, n], meaningful only for updates with the same A (the score of ASLoRA)."""
        return distance(self.factor_inner)


def compare(updates: Sequence[Factors]) -> Geometry:
    """Compare all pairs of n updates of the same shape."""
    r, num_entries = _largest_rank(updates), updates[0].A.shape[1] * updates[0].B.shape[0]
    A, B = _products([update.A for update in updates], r), _products([update.B.T for update in updates], r)
    inner = (A.gram * B.gram).sum((1, 3))
    sums, squares = (A.sums * B.sums).sum(1), inner.diagonal()
    return Geometry(
        inner=inner,
        factor_inner=torch.einsum("iaja->ij", B.gram),
        cka=_cka(A.centred(), torch.einsum("iaib->iab", B.gram)),
        moments=list(map(partial(Moments, num_entries), sums.tolist(), squares.tolist())),
    )


def linear_cka(updates: Sequence[Factors]) -> Tensor:
    """Linear CKA [n, n] of all pairs of updates with the same input; the widths of the outputs may differ."""
    r = _largest_rank(updates)
    A = _products([update.A for update in updates], r)
    # Bs of different heights have no common products; only the Gram matrix of each is needed.
    grams = [_products([update.B.T], r).gram[0, :, 0] for update in updates]
    return _cka(A.centred(), torch.stack(grams))


def cosine(inner: Tensor) -> Tensor:
    """Cosines from inner products [n, n]; not a number for an update of zeros."""
    norms = inner.diagonal().clamp(min=0).sqrt()
    return inner / torch.outer(norms, norms)


def distance(inner: Tensor) -> Tensor:
    """Distances from inner products [n, n]."""
    squares = inner.diagonal()
    # Rounding can make a squared distance of 0 negative.
    return (squares[:, None] + squares[None, :] - 2 * inner).clamp(min=0).sqrt().fill_diagonal_(0)


def relative_distance(inner: Tensor) -> Tensor:
    """Distances over the mean of the two norms: 0 for equal, 1.41 for unrelated (of equal norm), 2 for opposite."""
    norms = inner.diagonal().clamp(min=0).sqrt()
    return distance(inner) / ((norms[:, None] + norms[None, :]) / 2).clamp(min=TINY)


def _largest_rank(updates: Sequence[Factors]) -> int:
    return max(update.rank for update in updates)


class _Products(NamedTuple):
    """Products of n matrices [r, k], for all measures."""

    gram: Tensor  # [n, r, n, r], the inner products of all rows
    sums: Tensor  # [n, r], of each row
    width: int

    def centred(self) -> Tensor:
        """The inner products [n, r, n, r] of rows minus their means."""
        return self.gram - self.sums[:, :, None, None] * self.sums[None, None] / self.width


def _products(matrices: Sequence[Tensor], r: int) -> _Products:
    """Products of matrices [<= r, k] in float64, padded to r rows with zeros.

    The matrices are converted to float64 by blocks of columns: fresh memory for all columns would take as long as the
    products.
    """
    n, width = len(matrices), matrices[0].shape[1]
    gram, sums = torch.zeros(n * r, n * r, dtype=torch.float64), torch.zeros(n * r, dtype=torch.float64)
    block = torch.zeros(n, r, min(width, BLOCK), dtype=torch.float64)
    for start in range(0, width, BLOCK):
        columns = block[:, :, : width - start]  # the last block may be narrower
        for rows, matrix in zip(columns, matrices, strict=True):
            rows[: len(matrix)] = matrix.detach()[:, start : start + BLOCK]
        gram += _gram(columns.flatten(0, 1))
        sums += columns.sum(2).flatten()
    return _Products(gram.view(n, r, n, r), sums.view(n, r), width)


def _gram(rows: Tensor) -> Tensor:
    """``rows rowsᵀ`` [k, k], from the upper triangle of blocks and its mirror image: saves a third of the time."""
    if len(rows) <= SMALL:
        return rows @ rows.T
    upper, lower = rows.tensor_split(2)
    mixed = upper @ lower.T
    return torch.cat([torch.cat([_gram(upper), mixed], 1), torch.cat([mixed.T, _gram(lower)], 1)])


def _cka(gram_a: Tensor, gram_b: Tensor) -> Tensor:
    """Linear CKA [n, n] from ``A_i A_jᵀ`` [n, r, n, r] of centred As, and ``B_iᵀ B_i`` [n, r, r].

    With ``s_ij = |W_i W_jᵀ|² = sum((B_iᵀ B_i) A_i A_jᵀ (B_jᵀ B_j) * A_i A_jᵀ)``, CKA is ``s_ij / sqrt(s_ii s_jj)``.
    """
    weighted = torch.einsum("iab,ibjc->iajc", gram_b, gram_a)
    weighted = torch.einsum("iajc,jcd->iajd", weighted, gram_b)
    similarity = (weighted * gram_a).sum((1, 3))
    norms = similarity.diagonal().sqrt()
    return similarity / torch.outer(norms, norms)
