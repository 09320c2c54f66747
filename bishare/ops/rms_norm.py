"""The RMS norms of a frozen model in training: one autograd node each, which keeps x as it is and nothing else.

    y = w ∘ x̂,  x̂ = x / rms(x)        dx = (g' - x̂ mean(g' ∘ x̂)) / rms(x),  g' = g ∘ w        (Zhang & Sennrich, 2019)

transformers' own keep x in fp32, and pass over it in backward twice as often. The value is theirs bit by bit: their
code computes it.

Shapes: x [..., n], w [n], y [..., n].
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def quicken_norms(model: nn.Module) -> None:
    """Give every RMS norm in ``model`` this backward pass, which it takes while its weight is frozen."""
    for module in model.modules():
        kind: Any = type(module)
        if "forward" not in vars(module) and _is_rms_norm(kind):
            module.forward = partial(_forward, module)


def unquicken_norms(model: nn.Module) -> None:
    """Undo :func:`quicken_norms`."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func is _forward:
            del module.forward


@cache
def _is_rms_norm(kind: type[Any]) -> bool:
    """Whether modules of this class compute what stands above; some of that name have 1 + w in place of w."""
    if not kind.__name__.endswith("RMSNorm"):
        return False
    try:
        with torch.no_grad(), torch.device("cpu"):
            norm = kind(2).float()
            norm.weight.copy_(torch.tensor([2.0, 3.0]))
            y = norm(torch.tensor([1.0, 7.0]))  # of root mean square 5
            return torch.allclose(y, torch.tensor([0.4, 4.2])) and norm.variance_epsilon < 1e-2
    except (TypeError, AttributeError, RuntimeError):  # it takes or holds something else
        return False


def _forward(module: Any, x: Tensor) -> Tensor:
    frozen = not module.weight.requires_grad and x.requires_grad and torch.is_grad_enabled()
    if frozen:
        return _Norm.apply(x, module.weight, module)  # type: ignore[no-any-return, no-untyped-call]
    return type(module).forward(module, x)  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, module: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = module.variance_epsilon
        return type(module).forward(module, x)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        g, wide = (gradient * weight).float(), x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + ctx.epsilon)
        along = (g * wide).mean(-1, keepdim=True) * inverse.pow(2)
        return g.addcmul_(wide, along, value=-1).mul_(inverse).to(x.dtype), None, None
