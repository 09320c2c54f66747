"""The adapted weight: a frozen Linear with the low-rank update added to the output.

    y = x Wᵀ + b + (x Aᵀ) Bᵀ

A module is adapted by changing its class, so name, weight and state-dict keys stay as they were. Removing the adapter
changes the class back.

Shapes: x [..., in], W [out, in], A [r, in], B [out, r], y [..., out].
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bishare.adapters.base import Adapter
from bishare.adapters.factors import Factors, Slot
from bishare.ops.assembly import Blocks, Rows, assemble, stack_blocks
from bishare.ops.dropout import draw_keep
from bishare.ops.frozen_linear import FrozenLinear
from bishare.ops.lora_linear import Frozen, LowRank, base_linear, lora_linear, sibling_lora_linear


class Assembled(NamedTuple):
    """Factors assembled at the beginning of the forward pass (``factor_assembly.py``)."""

    A: Tensor  # [R, in], of all siblings
    rows: Sequence[Rows]
    """For each sibling, the rows of A to read."""
    B: Mapping[str, Tensor]
    """Bᵀ [r, out] by slot key, the scale inside."""
    dtype: torch.dtype
    with_gradient: bool


class SharedInput:
    """An input shared by several weights (siblings), e.g. q, k and v: a common dropout mask and product h = x Aᵀ.

    At run time, siblings recognise the same input by identity. The first sibling to read an input forms h for all
    siblings. h is kept until every sibling has read the input.

    Args:
        slots: The siblings.
        p: Probability of dropping an input feature while training.
    """

    def __init__(self, slots: Sequence[Slot], p: float) -> None:
        self.slots, self.p = tuple(slots), p
        self.assembled: Assembled | None = None
        self._input: Tensor | None = None
        self._h: Tensor | None = None  # [tokens, R]
        self._waiting: dict[str, Rows] = {}  # by slot key, for siblings that have not read the input
        self._grad_enabled = False

    def product(self, module: "AdaptedWeight", x: Tensor) -> Tensor:
        """The adapted output [..., out] of a sibling for the input [..., in]."""
        slot, dtype = module.slot, product_type(x)
        # A product formed under no_grad has no gradient to hand on.
        same = self._input is x and self._grad_enabled == torch.is_grad_enabled()
        if (h := self._h) is not None and same and slot.key in self._waiting:
            rows = self._waiting.pop(slot.key)
            if not self._waiting:
                self._input = self._h = None
            return sibling_lora_linear(x, h, module.frozen(), self._b(module, dtype), rows, dtype=dtype)
        keep = None
        if self.p and module.training:
            keep = draw_keep(x.shape, self.p, x.device)
        others = [other for other in self.slots if other is not slot]
        update, rest = self._update(module, others, dtype)
        y, h = lora_linear(x, module.frozen(), update, keep=keep, dtype=dtype)
        self._input, self._h = (x, h) if others else (None, None)
        self._grad_enabled = torch.is_grad_enabled()
        self._waiting = {other.key: rows for other, rows in zip(others, rest, strict=True)}
        return y

    def _b(self, module: "AdaptedWeight", dtype: torch.dtype) -> Tensor:
        """Bᵀ [r, out] of a sibling."""
        if (assembled := self._usable(dtype)) is not None:
            return assembled.B[module.slot.key]
        return _assemble_b(module.adapter.blocks(module.slot), module.slot, dtype)

    def _update(
        self, module: "AdaptedWeight", others: Sequence[Slot], dtype: torch.dtype
    ) -> tuple[LowRank, Sequence[Rows]]:
        """The update of the first sibling to read an input, and the rows of A for each of ``others``."""
        slot = module.slot
        # The stack of the assembled factors begins with the rows of the first slot.
        if slot is self.slots[0] and (assembled := self._usable(dtype)) is not None:
            return LowRank(assembled.A, assembled.B[slot.key], assembled.rows[0]), assembled.rows[1:]
        blocks = [module.adapter.blocks(sibling) for sibling in (slot, *others)]
        stack, rows = stack_blocks([sibling_blocks.A for sibling_blocks in blocks])
        A = assemble(stack, length=slot.in_features, dtype=dtype, side="A")
        return LowRank(A, _assemble_b(blocks[0], slot, dtype), rows[0]), rows[1:]

    def _usable(self, dtype: torch.dtype) -> Assembled | None:
        """The assembled factors, if their type and gradient mode fit."""
        assembled = self.assembled
        if assembled is None or assembled.dtype != dtype or assembled.with_gradient != torch.is_grad_enabled():
            return None
        return assembled

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled model starts without activations, since these can be neither copied nor sent.
        return {**self.__dict__, "_input": None, "_h": None, "_waiting": {}, "assembled": None}


def _assemble_b(blocks: Blocks, slot: Slot, dtype: torch.dtype) -> Tensor:
    return assemble(blocks.B, length=slot.out_features, dtype=dtype, scale=blocks.scale, side="B")


def product_type(x: Tensor) -> torch.dtype:
    """The type of a linear module's product: autocast's type inside autocast, else the input's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class AdaptedWeight(nn.Module):
    """Base of the adapted classes: the adapter, the slot, and the forward pass."""

    slot: Slot
    shared: SharedInput
    # The adapter is registered once, on the base model. A tuple hides the adapter from this module, so that the state
    # dict has each shared parameter once.
    _adapter: tuple[Adapter]

    @property
    def adapter(self) -> Adapter:
        return self._adapter[0]

    def frozen(self) -> Frozen:
        """The frozen weight as stored."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """The frozen weight as [out, in], a view."""
        frozen = self.frozen()
        return frozen.weight.T if frozen.transposed else frozen.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.adapter.merged:
            return base_linear(x, self.frozen())
        return self.shared.product(self, x)


class AdaptedLinear(AdaptedWeight, nn.Linear):
    """An adapted ``nn.Linear``."""

    def frozen(self) -> Frozen:
        return Frozen(self.weight, self.bias, False)


class AdaptedConv1D(AdaptedWeight, Conv1D):
    """An adapted Conv1D, the Linear of GPT-2 with a weight stored as [in, out]."""

    def frozen(self) -> Frozen:
        return Frozen(self.weight, self.bias, True)


ADAPTED: dict[type[nn.Module], type[AdaptedWeight]] = {
    nn.Linear: AdaptedLinear,
    FrozenLinear: AdaptedLinear,
    Conv1D: AdaptedConv1D,
}
"""The adapted class of each adaptable module type. Removing an adapter restores the first type of the class."""


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of an adaptable module, from attributes: under ZeRO-3 the weight itself may be empty."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def delta(factors: Factors) -> Tensor:
    """The whole update B A [out, in] in fp32: for merging and tests, never for training."""
    return factors.B.float() @ factors.A.float()
