"""The gated product of a Llama-like MLP (SwiGLU) in training: one autograd node, which keeps its two inputs.

    y = silu(g) ∘ u        dg = dy ∘ u ∘ silu'(g)        du = dy ∘ silu(g)                          (Shazeer, 2020)

Plain autograd keeps silu(g) too, a third of what the MLP keeps; here the backward pass computes silu(g) again. Value
and gradients equal those of autograd bit by bit: the same operations on the same numbers.

Shapes: g, u, y [..., n].
"""

from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.activations import SiLUActivation

from bishare.ops.dispatch import uses_swiglu_node

BRANCHES = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""Attributes of a gated MLP in transformers."""


def patch_swiglu(model: nn.Module) -> None:
    """Let every gated MLP with a SiLU in ``model`` form its product in this node while training."""
    for module in model.modules():
        if "forward" not in vars(module) and all(hasattr(module, name) for name in BRANCHES):
            kind: Any = type(module)
            if isinstance(module.act_fn, nn.SiLU | SiLUActivation) and _is_gated(kind):
                module.forward = partial(_forward, module)


def unpatch_swiglu(model: nn.Module) -> None:
    """Undo :func:`patch_swiglu`."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func is _forward:
            del module.forward


@cache
def _is_gated(kind: type[Any]) -> bool:
    """Whether modules of this class compute ``down(act(gate(x)) * up(x))`` from x alone."""
    if len(signature(kind.forward).parameters) != 2:  # self and x
        return False
    try:
        with torch.no_grad(), torch.device("cpu"):
            # A probe without the class's own weights: its forward pass is called with known factors.
            probe: Any = object.__new__(kind)
            nn.Module.__init__(probe)
            probe.gate_proj, probe.up_proj, probe.down_proj = _Times(2.0), _Times(3.0), _Times(5.0)
            probe.act_fn = nn.SiLU()
            x = torch.tensor([[[1.0, -2.0]]])
            return torch.allclose(kind.forward(probe, x), 5 * F.silu(2 * x) * (3 * x))
    except (TypeError, AttributeError, RuntimeError):  # a class that reads different attributes
        return False


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _forward(module: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    gate, up = module.gate_proj(x), module.up_proj(x)
    if uses_swiglu_node(gate, up):
        return module.down_proj(_SwiGLU.apply(gate, up))  # type: ignore[no-any-return, no-untyped-call]
    return module.down_proj(module.act_fn(gate) * up)  # type: ignore[no-any-return]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        g_gate = g_up = None
        if ctx.needs_input_grad[0]:
            g_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        if ctx.needs_input_grad[1]:
            g_up = F.silu(gate).mul_(gradient)
        return g_gate, g_up
