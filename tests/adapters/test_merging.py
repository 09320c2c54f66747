"""Distances against their definitions, every candidate and every order."""

import pytest
import torch
from torch import Tensor

from bishare.adapters.merging import CHUNK, Metric, choose, distances
from bishare.errors import UserError

FACTORS = torch.randn(5, 17, 3, generator=torch.Generator().manual_seed(0))
SHARED = torch.randn(3, 11, generator=torch.Generator().manual_seed(1))


def defined(metric: Metric, x: Tensor, y: Tensor) -> float:
    x, y, A = x.double(), y.double(), SHARED.double()
    match metric:
        case "l2":
            return (x - y).norm().item()
        case "relative":
            return (2 * (x - y).norm() / (x.norm() + y.norm())).item()
        case "cosine":
            return 1 - ((x * y).sum() / x.norm() / y.norm()).item()
        case "correlation":
            return 1 - torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()
        case "effective":
            return ((x - y) @ A).norm().item()


@pytest.mark.parametrize("metric", ["l2", "relative", "cosine", "correlation", "effective"])
def test_every_metric_is_what_it_says(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bishare.adapters.merging.CHUNK", 5 * 3 * 4)  # several chunks, the last one short
    assert FACTORS.numel() < CHUNK

    d = distances(FACTORS + 0.5, metric, SHARED)

    expected = [
        [defined(metric, x, y) if i != j else 0.0 for j, y in enumerate(FACTORS + 0.5)]
        for i, x in enumerate(FACTORS + 0.5)
    ]
    assert d.dtype == torch.float64
    torch.testing.assert_close(d, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-7)


def test_near_pairs_keep_their_distance() -> None:
    B = torch.full((2, 1000, 8), 3.0)
    B[1, 0, 0] += 1e-3

    assert distances(B, "l2")[0, 1].item() == pytest.approx((B[1, 0, 0] - 3.0).item(), rel=1e-3)


def test_effective_distance_ignores_the_rank_basis() -> None:
    basis = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double()
    turned, A = FACTORS.double() @ basis, torch.linalg.solve(basis, SHARED.double())

    torch.testing.assert_close(distances(turned, "effective", A), distances(FACTORS.double(), "effective", SHARED))
    assert (distances(turned, "l2") - distances(FACTORS, "l2")).abs().max() > 0.1


@pytest.mark.parametrize("metric", ["l2", "relative", "cosine", "correlation"])
def test_zero_factors_have_finite_distances(metric: Metric) -> None:
    assert distances(torch.zeros(3, 4, 2), metric).isfinite().all()


# Distances of five layers; 3 and 4 are nearest, then 0 and 2, then 0 and 3; 1 is far from all.
D = [
    [0.0, 7.0, 2.0, 3.0, 9.0],
    [7.0, 0.0, 8.0, 6.0, 6.5],
    [2.0, 8.0, 0.0, 5.0, 4.0],
    [3.0, 6.0, 5.0, 0.0, 1.0],
    [9.0, 6.5, 4.0, 1.0, 0.0],
]
APART = [0, 1, 2, 3, 4]


def test_closest_pair_merges_and_next_is_told() -> None:
    assert choose(D, APART, candidates="all", order="similar") == (3, 4, 1.0, 2.0)


def test_a_tied_layer_is_no_candidate() -> None:
    assert choose(D, [0, 1, 2, 4, 4], candidates="all", order="similar") == (0, 2, 2.0, 4.0)


def test_adjacent_candidates_are_neighbouring_owners() -> None:
    assert choose(D, APART, candidates="adjacent", order="similar") == (3, 4, 1.0, 5.0)
    assert choose(D, [0, 1, 2, 4, 4], candidates="adjacent", order="similar") == (2, 4, 4.0, 7.0)


def test_dissimilar_takes_the_farthest_pair() -> None:
    assert choose(D, APART, candidates="all", order="dissimilar") == (0, 4, 9.0, 8.0)


def test_hierarchical_compares_farthest_layers() -> None:
    owners = [2, 1, 2, 4, 4]
    assert choose(D, owners, candidates="all", order="similar") == (2, 4, 4.0, 6.5)
    assert choose(D, owners, candidates="all", order="hierarchical") == (1, 4, 6.5, 8.0)


def test_lower_index_decides_equal_distances() -> None:
    even = [[0.0 if i == j else 1.0 for j in range(4)] for i in range(4)]
    for order in ("similar", "dissimilar", "hierarchical"):
        merge = choose(even, [0, 1, 2, 3], candidates="all", order=order)
        assert merge is not None
        assert merge[:2] == (0, 1)


def test_random_order_depends_on_its_seed_alone() -> None:
    picks = [choose(D, APART, candidates="all", order="random", seed=f"{i}") for i in range(40)]
    again = [choose(D, APART, candidates="all", order="random", seed=f"{i}") for i in range(40)]

    assert picks == again
    assert len({pick[:2] for pick in picks if pick}) > 5
    assert all(pick and pick.distance == D[pick.lower][pick.upper] and pick.next_distance is None for pick in picks)


def test_one_owner_left_is_the_end() -> None:
    assert choose(D, [4] * 5, candidates="all", order="similar") is None
    assert choose(D, [1, 1, 4, 4, 4], candidates="all", order="similar") == (1, 4, 6.5, None)


def test_infinite_distance_stops_the_run() -> None:
    with pytest.raises(UserError, match="not finite"):
        choose([[0.0, float("nan")], [float("nan"), 0.0]], [0, 1], candidates="all", order="similar")
