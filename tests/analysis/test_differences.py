"""Distances of two adapters, weight by weight and all weights together."""

import math

import pytest
import torch

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.differences import compare_adapters
from bishare.errors import UserError


def slot(kind: str, *, n_in: int = 40, n_out: int = 30) -> Slot:
    return Slot(name=f"0.{kind}", layer=0, kind=kind, in_features=n_in, out_features=n_out)


def factors(seed: int, of: Slot) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(3, of.in_features, generator=generator)
    return Factors(A, torch.randn(of.out_features, 3, generator=generator))


def test_distances_are_those_of_whole_matrices() -> None:
    q, k = slot("q"), slot("k")
    first = {q: factors(1, q), k: factors(2, k)}
    second = {q: factors(3, q), k: factors(4, k)}
    found = compare_adapters(first, second)

    mine, theirs = (
        {place: (update.B @ update.A).double() for place, update in side.items()} for side in (first, second)
    )
    for place, difference in found.slots.items():
        one, two = mine[place], theirs[place]
        assert difference.effective == pytest.approx((one - two).norm().item(), rel=1e-5)
        assert difference.cosine == pytest.approx((one * two).sum().item() / (one.norm() * two.norm()).item(), abs=1e-6)
        assert difference.random_relative == pytest.approx(math.sqrt(2), abs=0.2)
    whole = torch.cat([(mine[place] - theirs[place]).flatten() for place in (q, k)])
    assert found.whole.effective == pytest.approx(whole.norm().item(), rel=1e-5)


def test_opposite_updates_are_two_apart() -> None:
    q = slot("q")
    update = factors(1, q)
    found = compare_adapters({q: update}, {q: Factors(update.A, -update.B)}).slots[q]
    assert found.relative == pytest.approx(2.0)
    assert found.cosine == pytest.approx(-1.0)


def test_only_common_weights_count() -> None:
    q, k = slot("q"), slot("k")
    update = factors(1, q)
    found = compare_adapters({q: update, k: factors(2, k)}, {q: update})
    assert list(found.slots) == [q]
    assert found.whole.effective == pytest.approx(0.0, abs=1e-5)


def test_weights_of_other_bases_are_refused() -> None:
    q, k, wide = slot("q"), slot("k"), slot("q", n_in=50)
    with pytest.raises(UserError, match=r"no weight in common: one adapts 0\.q, the other 0\.k"):
        compare_adapters({q: factors(1, q)}, {k: factors(1, k)})
    with pytest.raises(UserError, match=r"0\.q is 30 x 40 in one base and 30 x 50 in the other"):
        compare_adapters({q: factors(1, q)}, {wide: factors(1, wide)})
