"""Linear layers of a frozen model without an adapter, with the same matrix products as adapted layers (``matmul.py``).

    y = x Wᵀ + b        dx = g W, with g the gradient of y

A module is changed by changing its class, so name, weight and state-dict keys stay as they were.

Shapes: x [..., in], W [out, in], y, g [..., out].
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bishare.ops.dispatch import linear_kernel
from bishare.ops.matmul import mm


class FrozenLinear(nn.Linear):
    """An ``nn.Linear`` whose products in training bypass ``torch.mm`` where another library is faster.

    The module equals ``nn.Linear`` bit by bit on a GPU, in types other than fp32, and without a gradient outside
    :func:`~bishare.ops.dispatch.fast_without_gradient`.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel = linear_kernel(x, self.weight, self.bias)
        if kernel == "node":
            return _FrozenLinear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]
        if kernel == "product":
            return _linear(x, self.weight, self.bias)
        return super().forward(x)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = mm(x.reshape(-1, x.shape[-1]), weight.T, bias)
    if x.dim() == 2:
        return y  # a view returned by an autograd function could not be changed in place
    return y.view(*x.shape[:-1], len(weight))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        return mm(g, weight).view(*gradient.shape[:-1], weight.shape[1]), None, None


def patch_linears(model: nn.Module) -> None:
    """Make every plain ``nn.Linear`` in ``model`` a FrozenLinear."""
    _change(model, nn.Linear, FrozenLinear)


def unpatch_linears(model: nn.Module) -> None:
    """Undo :func:`patch_linears`."""
    _change(model, FrozenLinear, nn.Linear)


def _change(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in model.modules():
        # Subclasses have forward passes of their own.
        if type(module) is old:
            module.__class__ = new
