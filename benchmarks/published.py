"""Bi-Share LoRA as in the authors' code: a pass of its own for every level, ``torch.kron`` in every forward.

Formulation of https://github.com/yuhua-zhou/BSLoRA (``kron_forward``, ``gate_forward``, ``slice_forward``): the input
is converted to the adapter's fp32, and each pass is scaled and added to the output in place. Kronecker products are
cut where the size does not divide; the authors' code fails there.

Shapes: x [..., in], every pass [..., out].
"""

from collections.abc import Iterator
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bishare.adapters.bishare import BiShare
from bishare.adapters.factors import Slot
from bishare.adapters.transforms import Gate, Kronecker, Slice
from bishare.models.adapted_linear import AdaptedWeight
from bishare.ops.lora_linear import base_linear


def use_published_passes(model: nn.Module) -> None:
    """Replace the forward of every adapted weight of a model with a Bi-Share adapter by the authors'."""
    for module in model.modules():
        if isinstance(module, AdaptedWeight):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: AdaptedWeight, x: Tensor) -> Tensor:
    assert isinstance(module.adapter, BiShare)
    result = base_linear(x, module.frozen())
    for update in passes(module.adapter, module.slot, x):
        result += update
    return result


def passes(adapter: BiShare, slot: Slot, x: Tensor) -> Iterator[Tensor]:
    """The scaled local, intra and inter updates of a weight's output, one after another."""
    for _, (A, B), fit in adapter._levels(slot):
        x = x.to(A.dtype)
        match fit:
            case None:  # the local level
                update = F.linear(F.linear(x, A), B)
            case Kronecker(per_rank=False):
                kron_A = torch.kron(fit.A, A)[:, : slot.in_features]
                kron_B = torch.kron(fit.B, B)[: slot.out_features]
                update = x @ kron_A.T @ kron_B.T
            case Gate():
                shared = F.linear(F.linear(x, fit.in_down), fit.in_up)
                shared = F.linear(F.linear(shared, A), B)
                update = F.linear(F.linear(shared, fit.out_down), fit.out_up)
            case Slice():
                update = x @ A.T[fit.columns] @ B.T[:, fit.rows]
            case _:
                raise NotImplementedError(f"the authors' code has no {fit}")
        yield update * adapter.scale
