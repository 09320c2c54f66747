"""Entropies from factors equal their definition on the materialised matrices."""

import math

import pytest
import torch

from bishare.adapters.factors import Factors
from bishare.analysis.similarity.entropy import (
    Moments,
    entropy,
    joint_entropy,
    moments,
    relative_mutual_information,
    union,
)
from tests.reference import similarity_reference as reference

GENERATOR = torch.Generator().manual_seed(0)


def update(r: int, n_in: int, n_out: int, *, scale: float, mean: float = 0.0) -> Factors:
    A, B = (torch.randn(shape, dtype=torch.float64, generator=GENERATOR) for shape in ((r, n_in), (n_out, r)))
    return Factors(A + mean, (B + mean) * scale)


PAIRS = [
    (update(4, 30, 20, scale=1e-3), update(4, 30, 20, scale=3e-3)),
    (update(2, 30, 20, scale=1e-3), update(7, 12, 40, scale=1e-3)),  # other shapes and ranks
    (update(4, 30, 20, scale=1e-2, mean=0.5), update(4, 30, 20, scale=1e-2, mean=-0.5)),
    (update(4, 30, 20, scale=2.0), update(4, 30, 20, scale=5.0)),  # positive entropies
]


@pytest.mark.parametrize("pair", PAIRS, ids=["spread", "shape", "mean", "wide"])
def test_entropies_follow_the_definition(pair: tuple[Factors, Factors]) -> None:
    x, y = (moments(factors) for factors in pair)
    X, Y = ((factors.B @ factors.A).numpy() for factors in pair)
    assert entropy(x) == pytest.approx(reference.entropy(X), rel=1e-9)
    assert joint_entropy(x, y) == pytest.approx(reference.joint_entropy(X, Y), rel=1e-9)
    expected = reference.relative_mutual_information(X, Y)
    assert abs(relative_mutual_information(x, y) - expected) < 1e-9


def test_equal_spread_has_mutual_information_one() -> None:
    x, y = (moments(update(8, 400, 300, scale=1e-3 / math.sqrt(8))) for _ in range(2))
    assert relative_mutual_information(x, y) == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_unequal_spread_has_less_mutual_information(ratio: int) -> None:
    x, y = (moments(update(8, 400, 300, scale=s * 1e-3 / math.sqrt(8))) for s in (1, ratio))
    assert 0.94 <= relative_mutual_information(x, y) <= 0.96


def test_moments_of_a_union_are_exact() -> None:
    parts = [update(3, 10, 5, scale=1.0), update(2, 4, 9, scale=2.0)]
    entries = torch.cat([(part.B @ part.A).flatten() for part in parts])
    together = union(moments(part) for part in parts)
    assert together.num == len(entries)
    assert together.variance == pytest.approx(entries.var().item())


def test_zero_update_has_no_entropy() -> None:
    zero, other = Moments(10, 0.0, 0.0), Moments(10, 1.0, 5.0)
    assert entropy(zero) == -math.inf
    assert math.isnan(relative_mutual_information(zero, other))
