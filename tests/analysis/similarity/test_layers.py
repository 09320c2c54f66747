"""A whole adapter's similarity: every map holds the pairs of its kind, and whole layers are one long vector."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from bishare.adapters.factors import Factors
from bishare.analysis.similarity.layers import ALL, num_steps, similarity
from tests.analysis.similarity.updates import LAYERS, SHAPES, matrices, slot, updates
from tests.reference import similarity_reference as reference


def test_maps_of_a_kind_compare_its_layers() -> None:
    found = updates()
    of = matrices(found)
    maps = similarity(found).across["down"]
    for i, first in enumerate(LAYERS):
        for j, second in enumerate(LAYERS):
            pair = of[first, "down"], of[second, "down"]
            assert abs(maps.rmi[i, j].item() - reference.relative_mutual_information(*pair)) < 1e-9
            assert abs(maps.joint_entropy[i, j].item() - reference.joint_entropy(*pair)) < 1e-9
            assert maps.cosine[i, j].item() == pytest.approx(reference.cosine(*pair), abs=1e-9)
            assert maps.effective[i, j].item() == pytest.approx(reference.distance(*pair), abs=1e-7)


def test_whole_layers_compare_as_one_vector() -> None:
    found = updates()
    of = matrices(found)
    long = {layer: np.concatenate([of[layer, kind].flatten() for kind in SHAPES]) for layer in LAYERS}
    maps = similarity(found).across[ALL]
    pair = long[0], long[5]
    assert abs(maps.rmi[0, 2].item() - reference.relative_mutual_information(*pair)) < 1e-9
    assert maps.cosine[0, 2].item() == pytest.approx(reference.cosine(*pair), abs=1e-9)
    assert maps.effective[0, 2].item() == pytest.approx(reference.distance(*pair), abs=1e-7)
    ckas = [reference.linear_cka(of[0, kind], of[5, kind]) for kind in SHAPES]
    assert maps.cka[0, 2].item() == pytest.approx(np.mean(ckas), abs=1e-9)


def test_pairs_within_a_layer_are_averaged() -> None:
    found = updates()
    of = matrices(found)
    measured = similarity(found)
    pairs = [reference.relative_mutual_information(of[2, a], of[2, b]) for a, b in combinations(SHAPES, 2)]
    assert abs(measured.within_rmi[2] - np.mean(pairs)) < 1e-9
    assert measured.within_cka[2] == pytest.approx(reference.linear_cka(of[2, "q"], of[2, "k"]), abs=1e-9)
    assert measured.entropy[2, "q"] == pytest.approx(reference.entropy(of[2, "q"]))


def test_missing_or_unlike_kinds_leave_empty_cells() -> None:
    found = {slot: update for slot, update in updates().items() if (slot.layer, slot.kind) != (2, "k")}
    found[slot(7, "k", 12, 9)] = Factors(torch.randn(3, 12), torch.randn(9, 3))
    maps = similarity(found).across["k"]
    assert torch.isnan(maps.cosine).tolist() == [
        [False, True, False, True],
        [True, True, True, True],
        [False, True, False, True],
        [True, True, True, False],
    ]
    assert not torch.isnan(maps.rmi[0, 3]), "entropies need no common shape"


def test_one_update_makes_no_pair() -> None:
    found = {slot: update for slot, update in updates().items() if slot.kind == "q"}
    measured = similarity(found)
    assert all(math.isnan(mean) for mean in (*measured.within_rmi.values(), *measured.within_cka.values()))


def test_progress_counts_every_kind_and_layer() -> None:
    steps: list[None] = []
    similarity(updates(), after_each=lambda: steps.append(None))
    assert len(steps) == num_steps(updates()) == 6
