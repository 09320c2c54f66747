"""The similarity of a whole adapter's updates, within layers and across them, as in Figures 1 and 5 of the paper.

Zhou et al., "Bi-Share LoRA", ICML 2025, appendix A.2. Within a layer every pair of its updates is compared, across
layers the updates of one kind and, as ``all``, everything in the layer as one long vector.

Shapes: n layers; every map is [n, n] in float64, not a number where a layer lacks the kind or has it in another shape.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
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
    """What is measured of all pairs of layers."""

    joint_entropy: Tensor
    """In nats; the diagonal is the entropy of one alone."""
    rmi: Tensor
    """Relative mutual information, which measures scale."""
    cka: Tensor
    """Linear CKA, 0 to 1; for whole layers the mean over kinds."""
    cosine: Tensor
    relative: Tensor
    """Effective distance over the mean of the two norms: 0 the same, 1.41 unrelated, 2 opposite."""
    effective: Tensor
    """``|B_i A_i - B_j A_j|``."""
    l2: Tensor
    """``|B_i - B_j|``: it depends on the basis of the rank space, and says little where the As differ."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The similarity of an adapter's updates, or of their outputs."""

    layers: Sequence[int]
    kinds: Sequence[str]
    entropy: Mapping[tuple[int, str], float]
    """Of each update, by layer and kind, in nats."""
    within_rmi: Mapping[int, float]
    """Mean over all pairs of updates in a layer; not a number where there is no pair."""
    within_cka: Mapping[int, float]
    """Mean over the pairs that read inputs of one width."""
    across: Mapping[str, Maps]
    """By kind, and for whole layers as ``all``."""


def similarity(updates: Mapping[Slot, Factors], *, after_each: Callable[[], None] = lambda: None) -> Similarity:
    """Compare updates within their layers and across them.

    Args:
        updates: By slot; outputs of updates are compared as ``Factors(hᵀ, B)`` with ``h = x Aᵀ`` [tokens, r].
        after_each: Is called after each kind and each layer, for a progress bar.
    """
    layers = sorted({slot.layer for slot in updates})
    kinds = list(dict.fromkeys(slot.kind for slot in updates))
    moments: dict[tuple[int, str], Moments] = {}
    across, inner, factor_inner = {}, _empty(layers).fill_(0), _empty(layers).fill_(0)
    for kind in kinds:
        places = _Kind(layers, {slot.layer: update for slot, update in updates.items() if slot.kind == kind})
        moments |= {(layer, kind): of_update for layer, of_update in places.moments.items()}
        across[kind] = places.maps()
        inner += places.inner.nan_to_num(0)
        factor_inner += places.factor_inner.nan_to_num(0)
        after_each()

    in_layer = {layer: {kind: moments[layer, kind] for kind in kinds if (layer, kind) in moments} for layer in layers}
    whole = {layer: union(of_layer.values()) for layer, of_layer in in_layer.items()}
    cka = torch.stack([maps.cka for maps in across.values()]).nanmean(0)
    within_cka = {}
    for layer in layers:
        within_cka[layer] = _mean_cka([update for slot, update in updates.items() if slot.layer == layer])
        after_each()
    return Similarity(
        layers=layers,
        kinds=kinds,
        entropy={place: entropy.entropy(of_update) for place, of_update in moments.items()},
        within_rmi={layer: _mean_rmi(list(of_layer.values())) for layer, of_layer in in_layer.items()},
        within_cka=within_cka,
        across={ALL: _maps(layers, whole, inner, factor_inner, cka), **across},
    )


def num_steps(updates: Mapping[Slot, Factors]) -> int:
    """How often :func:`similarity` calls ``after_each``."""
    return len({slot.layer for slot in updates}) + len({slot.kind for slot in updates})


class _Kind:
    """The comparisons of one kind's updates, placed into maps of all layers."""

    def __init__(self, layers: Sequence[int], updates: Mapping[int, Factors]) -> None:
        self.layers = layers
        self.inner, self.factor_inner, self.cka = _empty(layers), _empty(layers), _empty(layers)
        self.moments: dict[int, Moments] = {}
        same_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for layer, update in updates.items():
            same_shape[update.A.shape[1], update.B.shape[0]].append(layer)
        for found in same_shape.values():
            self._place(found, compare([updates[layer] for layer in found]))

    def _place(self, found: Sequence[int], geometry: Geometry) -> None:
        rows = torch.tensor([self.layers.index(layer) for layer in found])
        for map_, values in (
            (self.inner, geometry.inner),
            (self.factor_inner, geometry.factor_inner),
            (self.cka, geometry.cka),
        ):
            map_[rows[:, None], rows] = values
        self.moments |= dict(zip(found, geometry.moments, strict=True))

    def maps(self) -> Maps:
        return _maps(self.layers, self.moments, self.inner, self.factor_inner, self.cka)


def _maps(
    layers: Sequence[int], moments: Mapping[int, Moments], inner: Tensor, factor_inner: Tensor, cka: Tensor
) -> Maps:
    joint, rmi = _empty(layers), _empty(layers)
    for i, first in enumerate(layers):
        for j, second in enumerate(layers):
            if first not in moments or second not in moments:
                continue
            pair = moments[first], moments[second]
            joint[i, j] = entropy.joint_entropy(*pair)
            rmi[i, j] = entropy.relative_mutual_information(*pair)
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
    pairs = [entropy.relative_mutual_information(*pair) for pair in combinations(moments, 2)]
    return fmean(pairs) if pairs else torch.nan


def _mean_cka(updates: Sequence[Factors]) -> float:
    """Over all pairs of one layer's updates that read inputs of one width."""
    same_width: dict[int, list[Factors]] = defaultdict(list)
    for update in updates:
        same_width[update.A.shape[1]].append(update)
    maps = [linear_cka(group) for group in same_width.values() if len(group) > 1]
    pairs = [value for map_ in maps for value in map_[*torch.triu_indices(len(map_), len(map_), 1)].tolist()]
    return fmean(pairs) if pairs else torch.nan
