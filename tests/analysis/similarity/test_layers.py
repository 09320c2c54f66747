"""A whole adapter's similarity: every map holds the pairs of its kind, and whole layers are one long vector."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.similarity.layers import ALL, num_steps, similarity
from bishare.analysis.similarity.null import random_updates
from tests.reference import similarity_reference as reference

SHAPES = {"q": (12, 12), "k": (12, 8), "down": (20, 12)}  # in, out
LAYERS = (0, 2, 5)


def slot(layer: int, kind: str, n_in: int, n_out: int) -> Slot:
    return Slot(name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=n_in, out_features=n_out)


def updates() -> dict[Slot, Factors]:
    torch.manual_seed(0)
    return {
        slot(layer, kind, n_in, n_out): Factors(
            torch.randn(3, n_in, dtype=torch.float64), torch.randn(n_out, 3, dtype=torch.float64) * 10.0**-layer
        )
        for layer in LAYERS
        for kind, (n_in, n_out) in SHAPES.items()
    }


def matrices(found: dict[Slot, Factors]) -> dict[tuple[int, str], np.ndarray]:
    return {(slot.layer, slot.kind): (update.B @ update.A).numpy() for slot, update in found.items()}


def test_the_maps_of_a_kind_compare_its_layers() -> None:
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


def test_whole_layers_are_compared_as_one_long_vector() -> None:
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


def test_within_a_layer_all_pairs_are_averaged_and_cka_where_the_inputs_agree() -> None:
    found = updates()
    of = matrices(found)
    measured = similarity(found)
    pairs = [reference.relative_mutual_information(of[2, a], of[2, b]) for a, b in combinations(SHAPES, 2)]
    assert abs(measured.within_rmi[2] - np.mean(pairs)) < 1e-9
    assert measured.within_cka[2] == pytest.approx(reference.linear_cka(of[2, "q"], of[2, "k"]), abs=1e-9)
    assert measured.entropy[2, "q"] == pytest.approx(reference.entropy(of[2, "q"]))


def test_a_layer_that_lacks_a_kind_or_has_another_shape_leaves_its_cells_empty() -> None:
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


def test_an_adapter_with_one_update_in_a_layer_has_no_pair_within_it() -> None:
    found = {slot: update for slot, update in updates().items() if slot.kind == "q"}
    measured = similarity(found)
    assert all(math.isnan(mean) for mean in (*measured.within_rmi.values(), *measured.within_cka.values()))


def test_a_progress_bar_hears_of_every_kind_and_layer() -> None:
    steps: list[None] = []
    similarity(updates(), after_each=lambda: steps.append(None))
    assert len(steps) == num_steps(updates()) == 6


def test_random_updates_have_the_same_spread_and_nothing_else_in_common() -> None:
    found = updates()
    null = random_updates(found)
    for slot_, update in found.items():
        drawn = null[slot_]
        assert (drawn.B @ drawn.A).std().item() == pytest.approx((update.B @ update.A).std().item(), rel=1e-4)
        assert drawn.rank == update.rank
    mine, random = similarity(found), similarity(null)
    torch.testing.assert_close(random.across[ALL].rmi, mine.across[ALL].rmi, atol=0.02, rtol=0)
    assert mine.across["q"].cosine[0, 0].item() == pytest.approx(1.0)
    assert abs(random.across[ALL].cosine[0, 1].item()) < 0.3


def test_random_updates_of_nearly_equal_entries_are_nearly_zero() -> None:
    constant = {slot(0, "q", 50, 40): Factors(torch.full((3, 50), 0.1), torch.full((40, 3), 0.7))}
    (drawn,) = random_updates(constant).values()
    assert (drawn.B @ drawn.A).abs().max() < 1e-6


def test_random_updates_of_zeros_are_zeros() -> None:
    zero = {slot(0, "q", 4, 4): Factors(torch.randn(2, 4), torch.zeros(4, 2))}
    (drawn,) = random_updates(zero).values()
    assert not drawn.B.any()
