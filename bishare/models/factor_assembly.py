"""Assembles the factors of all layers when a forward pass begins, factors of the same layout together.

Assembling a small factor is bound by launching its operations. Layer by layer, forward and backward, assembly took
1/30 of a step on a CPU. Factors not assembled here are assembled by their own weight (``adapted_linear.py``).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bishare.adapters.base import Adapter
from bishare.distributed.partitions import is_gathered_late
from bishare.models.activation_checkpointing import runs_again
from bishare.models.adapted_linear import AdaptedWeight, Assembled, SharedInput, product_type
from bishare.ops.assembly import Block, assemble_each, stack_blocks


class FactorAssembly:
    """Hooks of a base model, run before and after a forward pass.

    Args:
        adapter: The adapter inside the model.
        modules: The adapted weights of the model.
    """

    def __init__(self, adapter: Adapter, modules: Iterable[AdaptedWeight]) -> None:
        self.adapter, self.modules = adapter, tuple(modules)
        inputs = {id(module.shared): module.shared for module in self.modules}
        self.inputs: list[SharedInput] = list(inputs.values())

    def hook(self, model: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        """Register the hooks with the model's trunk, or with the whole model if the trunk lacks adapted weights."""
        trunk = getattr(model, "base_model", model)
        inside = set(trunk.modules())
        around = trunk if all(module in inside for module in self.modules) else model
        before = around.register_forward_pre_hook(self.assemble)
        return before, around.register_forward_hook(self.forget, always_call=True)

    def assemble(self, model: nn.Module, *_: Any) -> None:
        """Give each input the factors of its readers."""
        adapter = self.adapter
        # A layer computed again in the backward pass would find the factors gone.
        if not adapter.is_stored or adapter.merged or runs_again(model) or is_gathered_late(adapter):
            return
        dtype = product_type(self.modules[0].get_parameter("weight"))
        blocks = {slot.key: adapter.blocks(slot) for slot in adapter.slots}
        every_A: list[_Factor] = []
        every_B: list[_Factor] = []
        every_rows = []
        for shared in self.inputs:
            stack, rows = stack_blocks([blocks[slot.key].A for slot in shared.slots])
            every_A.append(_Factor(stack, shared.slots[0].in_features))
            every_rows.append(rows)
            for slot in shared.slots:
                every_B.append(_Factor(blocks[slot.key].B, slot.out_features, blocks[slot.key].scale))
        Bs = iter(_assembled(every_B, dtype, side="B"))
        As = _assembled(every_A, dtype, side="A")
        for shared, A, rows in zip(self.inputs, As, every_rows, strict=True):
            B = {slot.key: next(Bs) for slot in shared.slots}
            shared.assembled = Assembled(A, rows, B, dtype, torch.is_grad_enabled())

    def forget(self, *_: Any) -> None:
        """Drop the factors, since the parameters may change before the next pass."""
        for shared in self.inputs:
            shared.assembled = None


class _Factor(NamedTuple):
    """A factor before assembly."""

    blocks: Sequence[Block]
    length: int
    scale: float = 1.0

    def layout(self) -> tuple[Any, ...]:
        """Equal for factors that can be assembled together."""
        layout: list[Any] = [self.length, self.scale]
        for block in self.blocks:
            kernel_shape = block.kernel is not None and block.kernel.shape
            layout.append((block.shared.shape, kernel_shape, block.start, block.per_rank))
        return tuple(layout)


def _assembled(factors: Sequence[_Factor], dtype: torch.dtype, *, side: str) -> list[Tensor]:
    """The factors assembled, in the same order; factors of the same layout in a single call."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, factor in enumerate(factors):
        places.setdefault(factor.layout(), []).append(place)
    found: dict[int, Tensor] = {}
    for (length, scale, *_), members in places.items():
        blocks = [factors[place].blocks for place in members]
        results = assemble_each(blocks, length=length, dtype=dtype, scale=scale, side=side)
        found |= zip(members, results, strict=True)
    return [found[place] for place in range(len(factors))]
