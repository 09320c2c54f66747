"""The answers about kernels: processor, device, type and gradient, one question at a time."""

from threading import Thread

import pytest
import torch
from torch import Tensor

from bishare.ops import dispatch
from bishare.ops.dispatch import (
    fast_without_gradient,
    linear_kernel,
    mask_type,
    may_bypass_torch,
    trains_attention_on,
    uses_causal_attention,
    uses_numpy_bits,
    uses_onednn,
    uses_parts,
    uses_rms_norm_node,
    uses_swiglu_node,
)

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(autouse=True)
def _processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor with AVX-512 and oneDNN, wherever the tests run."""
    monkeypatch.setattr(dispatch, "HAS_ONEDNN_LINEAR", True)
    monkeypatch.setattr(dispatch, "HAS_AVX512", True)


@pytest.fixture
def no_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_AVX512", False)


def test_onednn_multiplies_fp32_on_a_cpu() -> None:
    assert may_bypass_torch(torch.zeros(2, 2))
    assert not may_bypass_torch(torch.zeros(2, 2, dtype=torch.bfloat16))
    assert not may_bypass_torch(torch.zeros(2, 2, dtype=torch.float64))
    assert not may_bypass_torch(torch.zeros(2, 2, device=META))


def test_torch_multiplies_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_ONEDNN_LINEAR", False)
    assert not uses_onednn(torch.zeros(2, 2), torch.zeros(2, 2))
    assert not uses_parts(torch.zeros(1000, 2))


def test_gaps_and_empty_matrices_are_torchs() -> None:
    a, b = torch.zeros(4, 6), torch.zeros(6, 8)
    assert uses_onednn(a, b)
    assert uses_onednn(a, torch.zeros(8, 6).T)
    assert not uses_onednn(a, torch.zeros(6, 20)[:, :8])
    assert not uses_onednn(a[:0], b)
    assert not uses_onednn(torch.zeros(4, 0), torch.zeros(0, 8))


@pytest.mark.usefixtures("no_avx512")
def test_long_products_are_mkls_without_avx512() -> None:
    wide = torch.zeros(6, 40)
    assert uses_onednn(torch.zeros(511, 6), wide)
    assert not uses_onednn(torch.zeros(512, 6), wide)
    assert uses_onednn(torch.zeros(512, 6), torch.zeros(6, 24)), "thin"
    assert not uses_onednn(torch.zeros(512, 6), torch.zeros(6, 4)), "thinner still"
    assert not uses_onednn(torch.zeros(6, 8).T, wide), "a gradient's"


def test_avx512_takes_no_parts() -> None:
    assert not uses_parts(torch.zeros(1000, 2))


@pytest.mark.usefixtures("no_avx512")
def test_long_sums_are_taken_in_parts() -> None:
    assert uses_parts(torch.zeros(512, 2))
    assert not uses_parts(torch.zeros(511, 2))
    assert not uses_parts(torch.zeros(512, 2, dtype=torch.bfloat16))


def layer() -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias of a frozen layer."""
    return torch.zeros(3, 4, requires_grad=True), torch.zeros(5, 4), torch.zeros(5)


def test_frozen_layer_in_training_is_a_node() -> None:
    x, weight, bias = layer()
    assert linear_kernel(x, weight, bias) == "node"
    assert linear_kernel(x, weight, None) == "node"
    assert linear_kernel(x.detach(), weight, bias) == "torch"


def test_trained_layer_is_torchs() -> None:
    x, weight, bias = layer()
    assert linear_kernel(x, weight.clone().requires_grad_(), bias) == "torch"
    assert linear_kernel(x, weight, bias.clone().requires_grad_()) == "torch"


def test_types_and_autocast_leave_layers_to_torch() -> None:
    x, weight, bias = layer()
    assert linear_kernel(x.bfloat16(), weight, bias) == "torch"
    assert linear_kernel(x.bfloat16(), weight.bfloat16(), bias.bfloat16()) == "torch"
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_kernel(x, weight, bias) == "torch"


def test_speed_without_gradient_is_asked_for() -> None:
    given = layer()
    with torch.no_grad():
        assert linear_kernel(*given) == "torch"
        with fast_without_gradient():
            assert linear_kernel(*given) == "product"
            with fast_without_gradient():
                pass
            assert linear_kernel(*given) == "product"
        assert linear_kernel(*given) == "torch"


def test_speed_without_gradient_holds_in_one_thread() -> None:
    kernels: list[str] = []

    def ask() -> None:
        with torch.no_grad():
            kernels.append(linear_kernel(*layer()))

    with fast_without_gradient():
        thread = Thread(target=ask)
        thread.start()
        thread.join()
    assert kernels == ["torch"]


def attended(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [1, 2, 3, 8] of a training step."""
    query, key, value = (torch.zeros(1, 2, 3, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    return query, key, value


@pytest.mark.skipif(not dispatch.HAS_FLASH, reason="this torch has no flash attention on CPUs")
def test_causal_attention_trains_in_bfloat16() -> None:
    half = attended(torch.bfloat16)
    assert uses_causal_attention(*half)
    assert not uses_causal_attention(*attended(torch.float32))
    assert not uses_causal_attention(*half, dropout=0.1)
    assert not uses_causal_attention(*(part.detach() for part in half))
    with torch.no_grad():
        assert not uses_causal_attention(*half)


def test_causal_attention_reads_equal_rows_without_gaps() -> None:
    query, key, value = attended(torch.bfloat16)
    assert not uses_causal_attention(query, key, value[..., :4])
    assert not uses_causal_attention(query[..., ::2], key[..., ::2], value[..., ::2])


def test_attention_is_changed_on_cpus() -> None:
    assert trains_attention_on(CPU)
    assert not trains_attention_on(META)


def test_rms_norm_node_wants_a_frozen_weight() -> None:
    x, weight = torch.zeros(3, requires_grad=True), torch.zeros(3)
    assert uses_rms_norm_node(x, weight)
    assert not uses_rms_norm_node(x.detach(), weight)
    assert not uses_rms_norm_node(x, weight.clone().requires_grad_())
    with torch.no_grad():
        assert not uses_rms_norm_node(x, weight)


def test_swiglu_node_wants_a_gradient_and_equal_types() -> None:
    trained, fixed = torch.zeros(3, requires_grad=True), torch.zeros(3)
    assert uses_swiglu_node(trained, fixed)
    assert uses_swiglu_node(fixed, trained)
    assert not uses_swiglu_node(fixed, fixed)
    assert not uses_swiglu_node(trained, fixed.bfloat16())
    with torch.no_grad():
        assert not uses_swiglu_node(trained, fixed)


def test_numpy_draws_on_cpus() -> None:
    assert uses_numpy_bits(CPU)
    assert not uses_numpy_bits(META)


def test_mask_is_as_wide_as_the_value() -> None:
    assert mask_type(torch.zeros(1)) == torch.int32
    assert mask_type(torch.zeros(1, dtype=torch.float16)) == torch.int16
    assert mask_type(torch.zeros(1, dtype=torch.float64)) is None
