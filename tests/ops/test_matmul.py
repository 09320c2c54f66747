"""The matrix product of fp32 on the CPU equals torch's, for every layout that the adapters use."""

import pytest
import torch

from bishare.ops import dispatch
from bishare.ops.matmul import mm, mm_over_tokens

needs_onednn = pytest.mark.skipif(not dispatch.HAS_ONEDNN_LINEAR, reason="no oneDNN operator for linear layers")


def matrix(rows: int, columns: int, dtype: torch.dtype, *, transposed: bool) -> torch.Tensor:
    drawn = torch.randn(columns, rows).T if transposed else torch.randn(rows, columns)
    return drawn.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("shape", [(40, 24, 8), (8, 40, 24), (1, 24, 40), (0, 24, 8), (8, 0, 24), (600, 24, 8)])
@pytest.mark.parametrize("has_avx512", [False, True])
def test_product_is_that_of_double_precision(
    shape: tuple[int, int, int],
    first: bool,
    second: bool,
    dtype: torch.dtype,
    has_avx512: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "HAS_AVX512", has_avx512)
    m, k, n = shape
    a, b = matrix(m, k, dtype, transposed=first), matrix(k, n, dtype, transposed=second)
    bias = torch.randn(n).to(dtype)
    tolerance = {"rtol": 1e-2, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(mm(a, b).double(), a.double() @ b.double(), **tolerance)
    torch.testing.assert_close(mm(a, b, bias).double(), a.double() @ b.double() + bias.double(), **tolerance)


def test_product_takes_columns_of_a_wider_matrix() -> None:
    wide, b = torch.randn(12, 20), torch.randn(5, 7)
    torch.testing.assert_close(mm(wide[:, 3:8], b), wide[:, 3:8] @ b)
    torch.testing.assert_close(mm(b.T, wide[:5, 2:9]), b.T @ wide[:5, 2:9])


def test_product_takes_some_rows_of_each_text() -> None:
    hidden, weight, bias = torch.randn(7, 5, 24), torch.randn(40, 24), torch.randn(40)
    last = hidden[:, -1]
    torch.testing.assert_close(mm(last, weight.T, bias), last @ weight.T + bias)
    assert mm(last, weight.T).is_contiguous()


def test_product_like_torch_is_bitwise_torchs() -> None:
    a, b, bias = torch.randn(300, 96), torch.randn(96, 160), torch.randn(160)
    assert torch.equal(mm(a, b, like_torch=True), torch.mm(a, b))
    assert torch.equal(mm(a, b, bias, like_torch=True), torch.addmm(bias, a, b))


@pytest.mark.parametrize("a", [torch.randn(600, 24), torch.randn(600, 24).T])
def test_torch_takes_long_products_without_avx512(a: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_AVX512", False)
    b = torch.randn(a.shape[1], 40)
    assert torch.equal(mm(a, b), torch.mm(a, b))


@needs_onednn
def test_onednn_takes_thin_products_without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_AVX512", False)
    monkeypatch.setattr(torch, "mm", None)
    x, A = torch.randn(600, 40), torch.randn(22, 40)
    torch.testing.assert_close(mm(x, A.T), x @ A.T)


@pytest.mark.parametrize("tokens", [0, 5, 512, 1023])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("has_avx512", [False, True])
def test_token_sum_is_that_of_double_precision(
    tokens: int, dtype: torch.dtype, has_avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "HAS_AVX512", has_avx512)
    h, g = torch.randn(tokens, 9).to(dtype), torch.randn(tokens, 24).to(dtype)
    tolerance = {"rtol": 1e-2, "atol": 1.0} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    for columns in (h, h[:, 2:7]):
        found = mm_over_tokens(columns, g)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), columns.double().T @ g.double(), **tolerance)


def test_without_onednn_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, bias = torch.randn(6, 4), torch.randn(4, 5), torch.randn(5)
    monkeypatch.setattr(dispatch, "HAS_ONEDNN_LINEAR", False)
    assert torch.equal(mm(a, b), torch.mm(a, b))
    assert torch.equal(mm(a, b, bias), torch.addmm(bias, a, b))
