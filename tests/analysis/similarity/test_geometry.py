"""Distances, cosine and CKA from factors equal their definitions on the materialised matrices."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bishare.adapters import merging
from bishare.adapters.factors import Factors
from bishare.analysis.similarity import geometry
from bishare.analysis.similarity.geometry import compare, linear_cka
from tests.reference import similarity_reference as reference


def updates(ranks: list[int], n_in: int = 30, n_out: int = 20, mean: float = 0.3) -> list[Factors]:
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=torch.float64, generator=generator) + mean

    return [Factors(draw(r, n_in), draw(n_out, r)) for r in ranks]


def all_pairs(found: list[Factors], measure: Callable[..., float]) -> np.ndarray:
    matrices = [(update.B @ update.A).numpy() for update in found]
    return np.array([[measure(x, y) for y in matrices] for x in matrices])


@pytest.mark.parametrize("ranks", [[4, 4, 4], [1, 6, 3], [40, 40, 40]], ids=["equal", "unequal", "large"])
def test_every_measure_follows_its_definition(ranks: list[int]) -> None:
    found = updates(ranks)
    measured = compare(found)
    np.testing.assert_allclose(measured.cosine, all_pairs(found, reference.cosine), rtol=0, atol=1e-9)
    np.testing.assert_allclose(measured.effective, all_pairs(found, reference.distance), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(measured.cka, all_pairs(found, reference.linear_cka), rtol=0, atol=1e-9)


def test_moments_are_those_of_the_entries() -> None:
    found = updates([4, 2])
    for update, of_update in zip(found, compare(found).moments, strict=True):
        assert of_update.variance == pytest.approx((update.B @ update.A).var().item(), rel=1e-9)


def test_cka_compares_updates_of_one_input() -> None:
    found = [updates([4], n_out=n_out)[0] for n_out in (20, 9, 50)]
    np.testing.assert_allclose(linear_cka(found), all_pairs(found, reference.linear_cka), rtol=0, atol=1e-9)


def test_cka_ignores_rotations_and_scales() -> None:
    (update,) = updates([4])
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    measured = compare([update, Factors(update.A, 3 * rotation @ update.B)])
    assert measured.cka[0, 1].item() == pytest.approx(1.0)
    assert measured.cosine[0, 1].abs().item() < 0.9


def test_only_raw_distance_depends_on_the_basis() -> None:
    first, second = updates([4, 4])
    basis = torch.randn(4, 4, dtype=torch.float64)
    turned = Factors(torch.linalg.solve(basis, second.A), second.B @ basis)
    before, after = compare([first, second]), compare([first, turned])
    torch.testing.assert_close(after.effective, before.effective)
    torch.testing.assert_close(after.cka, before.cka)
    assert (after.l2 - before.l2).abs().max() > 1


def test_distances_under_one_a_are_those_of_merging() -> None:
    first, *others = updates([4, 4, 4])
    same_a = [Factors(first.A, update.B) for update in (first, *others)]
    B = torch.stack([update.B for update in same_a])
    measured = compare(same_a)
    torch.testing.assert_close(measured.effective, merging.distances(B, "effective", first.A))
    torch.testing.assert_close(measured.l2, merging.distances(B, "l2"))


def test_relative_distance_runs_from_zero_to_two() -> None:
    (update,) = updates([4])
    relative = geometry.relative_distance(compare([update, update, Factors(update.A, -update.B)]).inner)
    assert relative[0, 1].item() == pytest.approx(0.0, abs=1e-6)
    assert relative[0, 2].item() == pytest.approx(2.0)


def test_gram_matrix_is_equal_in_halves() -> None:
    rows = torch.randn(301, 40, dtype=torch.float64)
    torch.testing.assert_close(geometry._gram(rows), rows @ rows.T)
