"""Which two layers of a mergeable group come to share a B: pure functions, the same on every rank.

Hu et al., 2024 (arXiv:2412.10135), section 3 and Algorithm 1: at an event, the pair whose running means lie closest
merges, one pair per event. The other candidates, scores and orders are for what the paper leaves open.

Shapes: n members of a group, B [n, out, r], A [r, in], distances [n, n] in fp64.
"""

import math
import random
from collections.abc import Sequence
from itertools import combinations, pairwise
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
    """One decision: the member ``lower`` from now on uses the B of ``upper``."""

    lower: int
    upper: int
    distance: float
    next_distance: float | None
    """Of the pair that would have been next; None where there is none, or where the order is random."""


def distances(B: Tensor, metric: Metric, A: Tensor | None = None) -> Tensor:
    """Distances [n, n] of all pairs, from one Gram matrix in fp64 (in fp32 near pairs drown in cancellation).

    ``l2``: ``|B_i - B_j|``; ``relative``: that over the mean of the two norms, 0 to 2; ``cosine``: 1 - cosine, 0 to
    2; ``correlation``: 1 - Pearson's correlation of the entries, 0 to 2; ``effective``: ``|(B_i - B_j) A|``, which
    does not depend on the basis of the rank space.

    Args:
        B: The members' factors [n, out, r].
        metric: What to measure; all norms are Frobenius norms.
        A: The A that the members share, for ``effective``.
    """
    n, num_rows, r = B.shape
    gram = torch.zeros(n, n, dtype=torch.float64, device=B.device)
    sums = torch.zeros(n, dtype=torch.float64, device=B.device)
    basis = None
    if metric == "effective":
        assert A is not None
        basis = A.double() @ A.double().T  # [r, r]: <B_i A, B_j A> = <B_i (A A^T), B_j>
    for chunk in B.split(max(1, CHUNK // (n * r)), dim=1):  # type: ignore[no-untyped-call]  # torch's own
        rows = chunk.double()
        left = rows if basis is None else rows @ basis
        gram.addmm_(left.flatten(1), rows.flatten(1).T)
        if metric == "correlation":
            sums += rows.sum((1, 2))
    if metric == "correlation":
        gram -= torch.outer(sums, sums) / (num_rows * r)
    gram = (gram + gram.T) / 2
    norms = gram.diagonal().clamp(min=0).sqrt()
    tiny = torch.finfo(torch.float64).tiny
    if metric in ("cosine", "correlation"):
        return 1 - gram / torch.outer(norms, norms).clamp(min=tiny)
    d = (gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram).clamp(min=0).sqrt()
    return d / ((norms[:, None] + norms[None, :]) / 2).clamp(min=tiny) if metric == "relative" else d


def choose(
    d: Sequence[Sequence[float]], owners: Sequence[int], *, candidates: Candidates, order: Order, seed: str = ""
) -> Merge | None:
    """The next merge of a group, or None when one B is left.

    A tied layer is no candidate: its owner stands for the group. ``adjacent`` candidates are neighbours among the
    owners. Equal distances are decided by the lower index.

    Args:
        d: Distances of all pairs; of tied layers only ``hierarchical`` reads them.
        owners: The member whose B each member uses.
        candidates: Which pairs of owners may merge.
        order: Smallest distance first, largest first, by chance, or ``hierarchical``: complete linkage, where two
            groups are as far apart as their two farthest layers.
        seed: Decides a random order, alone.

    Raises:
        UserError: A candidate's distance is not finite.
    """
    live = [i for i, owner in enumerate(owners) if owner == i]
    pairs = list(combinations(live, 2) if candidates == "all" else pairwise(live))
    if not pairs:
        return None
    layers = {root: [i for i, owner in enumerate(owners) if owner == root] for root in live}
    if order == "hierarchical":
        far = {(i, j): max(d[a][b] for a in layers[i] for b in layers[j]) for i, j in pairs}
    else:
        far = {(i, j): d[i][j] for i, j in pairs}
    if not all(math.isfinite(distance) for distance in far.values()):
        raise UserError("a B to be compared is not finite; lower learning_rate or clip gradients.")
    if order == "random":
        i, j = random.Random(seed).choice(pairs)
        return Merge(i, j, far[i, j], None)
    sign = -1.0 if order == "dissimilar" else 1.0
    ranked = sorted(pairs, key=lambda pair: (sign * far[pair], pair))
    (i, j), following = ranked[0], ranked[1:2]
    return Merge(i, j, far[i, j], far[following[0]] if following else None)


def owners_of(adapter: Adapter) -> dict[str, dict[int, int]]:
    """For every group, the layer whose B each layer uses."""
    return {
        name: {layer: group.layers[owner] for layer, owner in zip(group.layers, group.owners, strict=True)}
        for name, group in adapter.mergeable_groups().items()
    }
