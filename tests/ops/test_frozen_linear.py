"""Frozen layers that are multiplied faster give the values and gradients of torch's own, and change back."""

from threading import Thread

import pytest
import torch
from torch import nn

from bishare.ops.dispatch import fast_without_gradient, may_bypass_torch
from bishare.ops.frozen_linear import FrozenLinear, patch_linears, unpatch_linears
from bishare.ops.matmul import mm


def pair(*, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A plain frozen layer, and the same one made fast."""
    plain = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    fast = nn.Sequential(nn.Linear(24, 40, bias=bias).requires_grad_(False))
    fast[0].load_state_dict(plain.state_dict())
    patch_linears(fast)
    assert type(fast[0]) is FrozenLinear
    return plain, fast[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24), (0, 24), (2, 40, 24)])
def test_fast_layer_equals_the_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    plain, fast = pair(bias=bias)
    x, gradient = torch.randn(shape), torch.randn(*shape[:-1], 40)
    results = []
    for layer in (plain, fast):
        read = x.clone().requires_grad_()
        y = layer(read)
        y.backward(gradient)
        results.append((y, read.grad))
    torch.testing.assert_close(results[1], results[0])


def test_fast_layer_without_gradient_is_bitwise_plain() -> None:
    plain, fast = nn.Linear(576, 1536), nn.Linear(576, 1536)
    fast.load_state_dict(plain.requires_grad_(False).state_dict())
    patch_linears(model := nn.Sequential(fast.requires_grad_(False)))
    x = torch.randn(200, 576)
    assert torch.equal(model(x), plain(x))
    with torch.no_grad():
        assert torch.equal(model(x.requires_grad_()), plain(x))


def test_fast_inference_is_allowed_per_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, fast = pair()
    fast.requires_grad_(True)  # without a gradient a thawed layer is as good
    counted: list[int] = []
    monkeypatch.setattr("bishare.ops.frozen_linear.mm", lambda *given: counted.append(1) or mm(*given))
    x = torch.randn(2, 5, 24)
    others: list[int] = []
    with torch.no_grad(), fast_without_gradient():
        torch.testing.assert_close(fast(x), plain(x))
        with fast_without_gradient():
            pass
        fast(x)
        thread = Thread(target=lambda: others.append(torch.equal(fast(x), plain(x))))
        thread.start()
        thread.join()
    assert others == [True]
    assert len(counted) == (2 if may_bypass_torch(x) else 0)
    assert torch.equal(fast(x), plain(x))


def test_gradient_that_repeats_one_number_is_taken() -> None:
    plain, fast = pair()
    x = torch.randn(6, 24, requires_grad=True)
    (expected,) = torch.autograd.grad(plain(x).sum(), x)
    (found,) = torch.autograd.grad(fast(x).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    plain, fast = (layer.to(dtype) for layer in pair())
    x = torch.randn(6, 24, dtype=dtype, requires_grad=True)
    assert torch.equal(fast(x), plain(x))


def test_autocast_decides_the_type_as_usual() -> None:
    plain, fast = pair()
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.ones(2, 24, requires_grad=True)
        found, expected = fast(x), plain(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_thawed_layer_has_its_gradient() -> None:
    _, fast = pair()
    fast.weight.requires_grad_(True)
    fast(torch.ones(2, 24, requires_grad=True)).sum().backward()
    assert fast.weight.grad is not None


def test_fast_layer_becomes_plain_with_equal_state() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patch_linears(model)
    assert [type(module) for module in model] == [FrozenLinear, nn.ReLU, FrozenLinear]
    unpatch_linears(model)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
