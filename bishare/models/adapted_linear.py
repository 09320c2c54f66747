"""The adapted weight: a frozen Linear that adds x Aᵀ Bᵀ to its output.

A module is adapted by changing its class, so its name, its weight and its state-dict keys stay what they were, and
removing the adapter is changing the class back.

Shapes: x [..., in], A [r, in], B [out, r], y [..., out].
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


class Ready(NamedTuple):
    """Factors that were assembled before the forward pass (``upfront.py``)."""

    A: Tensor  # [R, in], of all siblings
    rows: Sequence[Rows]
    """The rows of A that each sibling reads."""
    B: Mapping[str, Tensor]
    """Bᵀ [r, out] by slot key, the scale inside."""
    dtype: torch.dtype
    with_gradient: bool


class SharedInput:
    """What the weights that read one input have in common, e.g. q, k and v: its dropout mask and one product x Aᵀ.

    Siblings are recognised at run time by the input's identity. The first to read an input forms the product for all
    of them; it is kept until every sibling has read it.

    Args:
        slots: The siblings.
        p: Probability of dropping an input feature while training.
    """

    def __init__(self, slots: Sequence[Slot], p: float) -> None:
        self.slots, self.p = tuple(slots), p
        self.ready: Ready | None = None
        self._input: Tensor | None = None
        self._h: Tensor | None = None  # [tokens, R]
        self._waiting: dict[str, Rows] = {}  # by slot key, of the siblings that have not read the input
        self._grad_enabled = False

    def product(self, module: "AdaptedWeight", x: Tensor) -> Tensor:
        """The adapted output of one of the siblings for the input [..., in]."""
        slot, dtype = module.slot, product_type(x)
        same = self._input is x and self._grad_enabled == torch.is_grad_enabled()
        if (h := self._h) is not None and same and slot.key in self._waiting:
            rows = self._waiting.pop(slot.key)
            if not self._waiting:
                self._input = self._h = None
            return sibling_lora_linear(x, h, module.frozen(), self._b(module, dtype), rows, dtype=dtype)
        keep = draw_keep(x.shape, self.p, x.device) if self.p and module.training else None
        others = [other for other in self.slots if other is not slot]
        update, rest = self._update(module, others, dtype)
        y, h = lora_linear(x, module.frozen(), update, keep=keep, dtype=dtype)
        self._input, self._h = (x, h) if others else (None, None)
        self._grad_enabled = torch.is_grad_enabled()
        self._waiting = {other.key: rows for other, rows in zip(others, rest, strict=True)}
        return y

    def _b(self, module: "AdaptedWeight", dtype: torch.dtype) -> Tensor:
        """Bᵀ [r, out] of a sibling."""
        if (ready := self._ready(dtype)) is not None:
            return ready.B[module.slot.key]
        return _assemble_b(module.adapter.blocks(module.slot), module.slot, dtype)

    def _update(
        self, module: "AdaptedWeight", others: Sequence[Slot], dtype: torch.dtype
    ) -> tuple[LowRank, Sequence[Rows]]:
        """The update of the first sibling to read an input, and the rows of its A that the others read."""
        slot = module.slot
        if slot is self.slots[0] and (ready := self._ready(dtype)) is not None:
            return LowRank(ready.A, ready.B[slot.key], ready.rows[0]), ready.rows[1:]
        every = [module.adapter.blocks(each) for each in (slot, *others)]
        stack, rows = stack_blocks([of_one.A for of_one in every])
        A = assemble(stack, length=slot.in_features, dtype=dtype, side="A")
        return LowRank(A, _assemble_b(every[0], slot, dtype), rows[0]), rows[1:]

    def _ready(self, dtype: torch.dtype) -> Ready | None:
        """What was assembled before, where it is of this type and made under the same gradient mode."""
        ready = self.ready
        fits = ready is not None and ready.dtype == dtype and ready.with_gradient == torch.is_grad_enabled()
        return ready if fits else None

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled model starts with nothing pending: activations can be neither copied nor sent.
        return {**self.__dict__, "_input": None, "_h": None, "_waiting": {}, "ready": None}


def _assemble_b(blocks: Blocks, slot: Slot, dtype: torch.dtype) -> Tensor:
    return assemble(blocks.B, length=slot.out_features, dtype=dtype, scale=blocks.scale, side="B")


def product_type(x: Tensor) -> torch.dtype:
    """The type in which a linear module computes: autocast's inside autocast, else that of its input."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class AdaptedWeight(nn.Module):
    """What the adapted classes have in common: the adapter, the slot, and the forward pass."""

    slot: Slot
    shared: SharedInput
    # The adapter is registered once, on the base model. A tuple hides it from this module, so that the state dict
    # has each shared parameter once.
    _adapter: tuple[Adapter]

    @property
    def adapter(self) -> Adapter:
        return self._adapter[0]

    def frozen(self) -> Frozen:
        """The frozen weight as it is stored."""
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
    """An adapted Conv1D, GPT-2's Linear whose weight is stored as [in, out]."""

    def frozen(self) -> Frozen:
        return Frozen(self.weight, self.bias, True)


ADAPTED: dict[type[nn.Module], type[AdaptedWeight]] = {
    nn.Linear: AdaptedLinear,
    FrozenLinear: AdaptedLinear,
    Conv1D: AdaptedConv1D,
}
"""The module types that can be adapted, and what they become; the way back leads to the first that becomes so."""


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of an adaptable module, from its attributes: under ZeRO-3 the weight itself may be empty."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def delta(factors: Factors) -> Tensor:
    """The whole update B A [out, in] in fp32: for merging and tests, never for training."""
    return factors.B.float() @ factors.A.float()
