"""Which two layers of a mergeable group come to share a B: pure functions, the same on every rank.

Hu et al., 2024 (arXiv:2412.10135), section 3 and Algorithm 1: at an event, the pair with the closest running means
merges, a single pair per event. Further candidates, scores and orders answer questions left open by the paper.

Shapes: n members of a group, B [n, out, r], A [r, in], distances [n, n] in fp64.
"""

import math
import random
from collections.abc import Sequence
from itertools import combinations, pairwise, product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bishare.adapters.base import Adapter
from bishare.errors import UserError

Candidates = Literal["all", "adjacent"]
Metric = Literal["l2", "relative", "cosine", "correlation", "effective"]
Order = Literal["similar", "random", "dissimilar", "hierarchical"]

CHUNK = 2**16
"""Values taken to fp64 at a time, so that they stay in the cache."""


class Merge(NamedTuple):
    """A decision: from now on the member ``lower`` uses the B of ``upper``."""

    lower: int
    upper: int
    distance: float
    next_distance: float | None
    """Distance of the next pair in order; None for the last pair or a random order."""


def distances(B: Tensor, metric: Metric, A: Tensor | None = None) -> Tensor:
    """Distances [n, n] of all pairs, from a Gram matrix in fp64 (fp32 loses near pairs to cancellation).

    - ``l2``: ``|B_i - B_j|``.
    - ``relative``: l2 over the mean of the two norms, 0 to 2.
    - ``cosine``: 1 - cosine, 0 to 2.
    - ``correlation``: 1 - Pearson's correlation of the entries, 0 to 2.
    - ``effective``: ``|(B_i - B_j) A|``, the same in every basis of the rank space.

    Args:
        B: The members' factors [n, out, r].
        metric: The measure; all norms are Frobenius norms.
        A: The A shared by all members, for ``effective``.
    """
    n, num_rows, r = B.shape
    gram = torch.zeros(n, n, dtype=torch.float64, device=B.device)
    sums = torch.zeros(n, dtype=torch.float64, device=B.device)
    basis = None
    if metric == "effective":
        assert A is not None
        basis = A.double() @ A.double().T  # [r, r]: <B_i A, B_j A> = <B_i (A A^T), B_j>
    # A chunk of rows at a time, so that the fp64 copy stays in the processor's cache.
    for chunk in B.split(max(1, CHUNK // (n * r)), dim=1):  # type: ignore[no-untyped-call]  # torch's own
        rows = chunk.double()
        left = rows if basis is None else rows @ basis
        gram.addmm_(left.flatten(1), rows.flatten(1).T)
        if metric == "correlation":
            sums += rows.sum((1, 2))
    if metric == "correlation":
        # The Gram matrix of centred entries.
        gram -= torch.outer(sums, sums) / (num_rows * r)
    gram = (gram + gram.T) / 2
    norms = gram.diagonal().clamp(min=0).sqrt()
    tiny = torch.finfo(torch.float64).tiny
    if metric in ("cosine", "correlation"):
        return 1 - gram / torch.outer(norms, norms).clamp(min=tiny)
    d = (gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram).clamp(min=0).sqrt()
    if metric == "relative":
        d = d / ((norms[:, None] + norms[None, :]) / 2).clamp(min=tiny)
    return d


def choose(
    d: Sequence[Sequence[float]], owners: Sequence[int], *, candidates: Candidates, order: Order, seed: str = ""
) -> Merge | None:
    """The next merge of a group, or None when a single B is left.

    A tied layer is no candidate; the owner stands for all layers tied to the same B. ``adjacent`` candidates are
    neighbours among the owners. Equal distances are decided by the lower index.

    Args:
        d: Distances of all pairs; only ``hierarchical`` reads the distances of tied layers.
        owners: For each member, the member whose B is used.
        candidates: Which pairs of owners may merge.
        order: Smallest distance first, largest first, by chance, or ``hierarchical``: complete linkage, where the
            distance of two groups is the distance of their two farthest layers.
        seed: Decides a random order, alone.

    Raises:
        UserError: A candidate's distance is not finite.
    """
    live = [i for i, owner in enumerate(owners) if owner == i]
    pairs = list(combinations(live, 2) if candidates == "all" else pairwise(live))
    if not pairs:
        return None
    gaps: dict[tuple[int, int], float] = {}
    for i, j in pairs:
        gaps[i, j] = _complete_linkage(d, owners, i, j) if order == "hierarchical" else d[i][j]
        # NaN would make the order of a sort undefined.
        if not math.isfinite(gaps[i, j]):
            raise UserError("a B to be compared is not finite; lower learning_rate or clip gradients.")
    if order == "random":
        i, j = random.Random(seed).choice(pairs)
        return Merge(i, j, gaps[i, j], None)
    sign = -1.0 if order == "dissimilar" else 1.0
    first, *following = sorted(pairs, key=lambda pair: (sign * gaps[pair], pair))
    return Merge(*first, gaps[first], gaps[following[0]] if following else None)


def _complete_linkage(d: Sequence[Sequence[float]], owners: Sequence[int], i: int, j: int) -> float:
    """Largest distance between a layer that uses the B of ``i`` and a layer that uses the B of ``j``."""
    of_i = [layer for layer, owner in enumerate(owners) if owner == i]
    of_j = [layer for layer, owner in enumerate(owners) if owner == j]
    return max(d[a][b] for a, b in product(of_i, of_j))


def owners_of(adapter: Adapter) -> dict[str, dict[int, int]]:
    """For every group, the owner of the B of each layer: both are indices of layers."""
    found: dict[str, dict[int, int]] = {}
    for name, group in adapter.mergeable_groups().items():
        owners = [group.layers[owner] for owner in group.owners]
        found[name] = dict(zip(group.layers, owners, strict=True))
    return found
