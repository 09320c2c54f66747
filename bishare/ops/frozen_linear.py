"""The linear layers of a frozen model that no adapter changes, multiplied as the adapted ones are (products.py).

A module is changed by changing its class, so its name, its weight and its state-dict keys stay what they were.

Shapes: x [..., in], W [out, in], y [..., out].
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bishare.ops.matmul import mm, through_onednn

_thread = threading.local()


@contextmanager
def fast_without_gradient() -> Iterator[None]:
    """Let this thread's calls be fast without a gradient too; the bits are not those of the base model then."""
    before = getattr(_thread, "fast", False)
    _thread.fast = True
    try:
        yield
    finally:
        _thread.fast = before


class FrozenLinear(nn.Linear):
    """An ``nn.Linear`` that in training takes its products past ``torch.mm`` where that is faster.

    On a GPU, in other types than fp32, and without a gradient except inside :func:`fast_without_gradient`, it is
    ``nn.Linear`` bit by bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = self.weight.dtype != x.dtype or not through_onednn(x) or torch.is_autocast_enabled("cpu")
        if not plain and not torch.is_grad_enabled() and getattr(_thread, "fast", False):
            return _product(x, self.weight, self.bias)
        thawed = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if plain or thawed or not (x.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = mm(x.reshape(-1, x.shape[-1]), weight.T, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], len(weight))  # what a function returns as a view stays as it is


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        return mm(g, weight).view(*gradient.shape[:-1], weight.shape[1]), None, None


def quicken(model: nn.Module) -> None:
    """Make every plain ``nn.Linear`` in ``model`` a FrozenLinear."""
    _change(model, nn.Linear, FrozenLinear)


def unquicken(model: nn.Module) -> None:
    """Undo :func:`quicken`."""
    _change(model, FrozenLinear, nn.Linear)


def _change(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
