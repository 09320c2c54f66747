"""The similarity of an adapter's updates, within layers and across layers.

Zhou et al., "Bi-Share LoRA", ICML 2025, appendix A.2, Figures 1 and 5. Within a layer, every pair of updates is
compared. Across layers, updates of the same kind are compared, and whole layers as ``all``: the concatenation of a
layer's updates.

Shapes: n layers; a map is [n, n] in float64. An entry is not a number if a layer lacks the kind, or the two layers have
different shapes.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean

import torch
from torch import Tensor

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.similarity import entropy
from bishare.analysis.similarity.entropy import Moments, union
from bishare.analysis.similarity.geometry import Geometry, compare, cosine, distance, linear_cka, relative_distance

ALL = "all"
"""Name of the comparison of whole layers."""


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The measures of all pairs of layers."""

    joint_entropy: Tensor
    """In nats; the diagonal is the entropy of a single layer."""
    rmi: Tensor
    """Relative mutual information; measures scale."""
    cka: Tensor
    """Linear CKA, 0 to 1; for whole layers the mean over kinds."""
    cosine: Tensor
    relative: Tensor
    """Effective distance over the mean of the two norms: 0 for equal, 1.41 for unrelated, 2 for opposite."""
    effective: Tensor
    """``|B_i A_i - B_j A_j|``."""
    l2: Tensor
    """``|B_i - B_j|``: depends on the basis of the rank space, and says little where the As differ."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The similarity of an adapter's updates, or of their outputs."""

    layers: Sequence[int]
    kinds: Sequence[str]
    entropy: Mapping[tuple[int, str], float]
    """Entropy of each update in nats, by layer and kind."""
    within_rmi: Mapping[int, float]
    """Mean over all pairs of updates in a layer; not a number in a layer with a single update."""
    within_cka: Mapping[int, float]
    """Mean over the pairs of updates in a layer with inputs of equal width."""
    across: Mapping[str, Maps]
    """Maps by kind, and of whole layers as ``all``."""


def similarity(updates: Mapping[Slot, Factors], *, after_each: Callable[[], None] = lambda: None) -> Similarity:
    """Compare updates within layers and across layers.

    Args:
        updates: Updates by slot; for outputs of updates, factors hᵀ [r, tokens] and B, with ``h = x Aᵀ``.
        after_each: Called after each kind and each layer, for a progress bar.
    """
    layers = sorted({slot.layer for slot in updates})
    by_kind: dict[str, dict[int, Factors]] = defaultdict(dict)
    by_layer: dict[int, list[Factors]] = defaultdict(list)
    for slot, update in updates.items():
        by_kind[slot.kind][slot.layer] = update
        by_layer[slot.layer].append(update)
    in_layer: dict[int, list[Moments]] = defaultdict(list)
    entropies: dict[tuple[int, str], float] = {}
    across, inner, factor_inner = {}, _empty(layers).fill_(0), _empty(layers).fill_(0)
    for kind, of_kind in by_kind.items():
        compared = _Kind(layers, of_kind)
        for layer, of_update in compared.moments.items():
            in_layer[layer].append(of_update)
            entropies[layer, kind] = entropy.entropy(of_update)
        across[kind] = compared.maps()
        # Inner products of concatenated vectors are sums; a missing update counts as zeros.
        inner += compared.inner.nan_to_num(0)
        factor_inner += compared.factor_inner.nan_to_num(0)
        after_each()

    cka = torch.stack([maps.cka for maps in across.values()]).nanmean(0)
    whole, within_rmi, within_cka = {}, {}, {}
    for layer in layers:
        whole[layer] = union(in_layer[layer])
        within_rmi[layer] = _mean_rmi(in_layer[layer])
        within_cka[layer] = _mean_cka(by_layer[layer])
        after_each()
    return Similarity(
        layers=layers,
        kinds=list(by_kind),
        entropy=entropies,
        within_rmi=within_rmi,
        within_cka=within_cka,
        across={ALL: _maps(layers, whole, inner, factor_inner, cka), **across},
    )


def num_steps(updates: Mapping[Slot, Factors]) -> int:
    """Number of calls of ``after_each`` by :func:`similarity`."""
    return len({slot.layer for slot in updates}) + len({slot.kind for slot in updates})


class _Kind:
    """The comparisons of the updates of a kind, as maps of all layers."""

    def __init__(self, layers: Sequence[int], updates: Mapping[int, Factors]) -> None:
        self.layers = layers
        self.inner, self.factor_inner, self.cka = _empty(layers), _empty(layers), _empty(layers)
        self.moments: dict[int, Moments] = {}
        same_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for layer, update in updates.items():
            same_shape[update.A.shape[1], update.B.shape[0]].append(layer)
        for layers_of_shape in same_shape.values():
            self._write(layers_of_shape, compare([updates[layer] for layer in layers_of_shape]))

    def _write(self, layers: Sequence[int], geometry: Geometry) -> None:
        """Write the pairs of layers of the same shape into the maps."""
        rows = torch.tensor([self.layers.index(layer) for layer in layers])
        self.inner[rows[:, None], rows] = geometry.inner
        self.factor_inner[rows[:, None], rows] = geometry.factor_inner
        self.cka[rows[:, None], rows] = geometry.cka
        self.moments |= dict(zip(layers, geometry.moments, strict=True))

    def maps(self) -> Maps:
        return _maps(self.layers, self.moments, self.inner, self.factor_inner, self.cka)


def _maps(
    layers: Sequence[int], moments: Mapping[int, Moments], inner: Tensor, factor_inner: Tensor, cka: Tensor
) -> Maps:
    joint, rmi = _empty(layers), _empty(layers)
    for (i, first), (j, second) in product(enumerate(layers), repeat=2):
        if first in moments and second in moments:
            joint[i, j] = entropy.joint_entropy(moments[first], moments[second])
            rmi[i, j] = entropy.relative_mutual_information(moments[first], moments[second])
    return Maps(
        joint_entropy=joint,
        rmi=rmi,
        cka=cka,
        cosine=cosine(inner),
        relative=relative_distance(inner),
        effective=distance(inner),
        l2=distance(factor_inner),
    )


def _empty(layers: Sequence[int]) -> Tensor:
    return torch.full((len(layers), len(layers)), torch.nan, dtype=torch.float64)


def _mean_rmi(moments: Sequence[Moments]) -> float:
    """Mean over all pairs of a layer's updates; not a number without a pair."""
    pairs = [entropy.relative_mutual_information(*pair) for pair in combinations(moments, 2)]
    return fmean(pairs) if pairs else torch.nan


def _mean_cka(updates: Sequence[Factors]) -> float:
    """Mean over all pairs of a layer's updates with inputs of equal width; not a number without a pair."""
    same_width: dict[int, list[Factors]] = defaultdict(list)
    for update in updates:
        same_width[update.A.shape[1]].append(update)
    pairs: list[float] = []
    for group in same_width.values():
        if len(group) > 1:
            map_ = linear_cka(group)
            # The map is symmetric, with ones on the diagonal: each pair counts once.
            pairs += map_[*torch.triu_indices(len(map_), len(map_), 1)].tolist()
    return fmean(pairs) if pairs else torch.nan
