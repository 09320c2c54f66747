"""The spectrum from factors equals the spectrum of the materialised matrix."""

import math

import pytest
import torch

from bishare.adapters.factors import Factors
from bishare.analysis.ranks import UpdateRank, effective_rank, measure, numerical_rank, singular_values


def random_factors(r: int, n_in: int, n_out: int, dtype: torch.dtype = torch.float64) -> Factors:
    return Factors(torch.randn(r, n_in, dtype=dtype), torch.randn(n_out, r, dtype=dtype))


@pytest.mark.parametrize(
    ("r", "n_in", "n_out"),
    [(4, 32, 48), (1, 7, 5), (8, 8, 8), (12, 5, 40), (12, 40, 5), (12, 3, 5)],
    ids=["low", "one", "square", "r above in", "r above out", "r above both"],
)
def test_singular_values_are_those_of_the_product(r: int, n_in: int, n_out: int) -> None:
    torch.manual_seed(0)
    factors = random_factors(r, n_in, n_out)
    expected = torch.linalg.svdvals(factors.B @ factors.A)[: min(r, n_in, n_out)]
    torch.testing.assert_close(singular_values(factors), expected, rtol=1e-10, atol=1e-12)


def test_numerical_rank_equals_torchs_matrix_rank() -> None:
    torch.manual_seed(0)
    factors = random_factors(10, 30, 50)
    factors.A[6:] = factors.A[:4]  # 6 independent rows are left
    factors.B[:, 5] *= 1e-9  # and one of them is below what fp32 can see
    matrix = factors.B @ factors.A
    tolerance = 50 * torch.finfo(torch.float32).eps
    expected = torch.linalg.matrix_rank(matrix, rtol=tolerance)
    assert measure([factors])[0].numerical == expected.item() == 5


def test_rank_ignores_rounding_noise() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        factors = random_factors(6, 64, 48, dtype)
        twice = Factors(torch.cat([factors.A, factors.A]), torch.cat([factors.B, factors.B], dim=1))
        assert measure([twice])[0].numerical == 6


def test_effective_rank_of_equal_values_is_their_number() -> None:
    assert effective_rank(torch.full((5,), 3.0)).item() == pytest.approx(5.0)


def test_effective_rank_is_exponential_of_entropy() -> None:
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor([3.0, 1.0, 0.0])).item() == pytest.approx(math.exp(entropy))


def test_effective_rank_of_one_direction_is_one() -> None:
    torch.manual_seed(0)
    one = random_factors(1, 20, 30)
    assert measure([one])[0].effective == pytest.approx(1.0)


def test_zero_update_has_zero_rank_and_norm() -> None:
    factors = Factors(torch.randn(4, 8), torch.zeros(6, 4))
    assert measure([factors]) == [UpdateRank(numerical=0, effective=0.0, norm=0.0)]


def test_update_without_rank_is_zero() -> None:
    factors = Factors(torch.zeros(0, 8), torch.zeros(6, 0))
    assert measure([factors]) == [UpdateRank(numerical=0, effective=0.0, norm=0.0)]


def test_norm_is_the_products_frobenius_norm() -> None:
    torch.manual_seed(0)
    factors = random_factors(3, 20, 30)
    assert measure([factors])[0].norm == pytest.approx(torch.linalg.matrix_norm(factors.B @ factors.A).item())


def test_updates_of_mixed_shapes_keep_order() -> None:
    torch.manual_seed(0)
    updates = [random_factors(r, n, m) for r, n, m in [(2, 9, 8), (5, 9, 8), (2, 9, 8), (3, 4, 30), (5, 9, 8)]]
    together = measure(updates)
    assert [report.numerical for report in together] == [2, 5, 2, 3, 5]
    for update, report in zip(updates, together, strict=True):
        assert report.norm == pytest.approx(measure([update])[0].norm)


def test_numerical_rank_uses_the_longer_side() -> None:
    values = torch.tensor([1.0, 1e-5], dtype=torch.float64)
    assert numerical_rank(values, size=10).item() == 2
    assert numerical_rank(values, size=1000).item() == 1
