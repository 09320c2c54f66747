"""Assembles the factors of all layers when a forward pass begins, those of one layout together.

A factor is small, so what it takes is to start its operations, not to do them: layer by layer, forward and back, that
was a thirtieth of a step on a CPU. What is not assembled here, the weight that needs it assembles (``linear.py``).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bishare.adapters.base import Adapter
from bishare.distributed.partitions import is_gathered_late
from bishare.models.activation_checkpointing import runs_again
from bishare.models.adapted_linear import AdaptedWeight, Ready, SharedInput, product_type
from bishare.ops.assembly import Block, assemble_each, stack_blocks


class Upfront:
    """What a base model does before and after its forward pass.

    Args:
        adapter: The adapter inside it.
        modules: Its adapted weights.
    """

    def __init__(self, adapter: Adapter, modules: Iterable[AdaptedWeight]) -> None:
        self.adapter, self.modules = adapter, tuple(modules)
        self.inputs: list[SharedInput] = list({id(module.shared): module.shared for module in self.modules}.values())

    def hook(self, model: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        """Have the model's trunk call this, or the whole model if some weights are not in the trunk."""
        trunk = getattr(model, "base_model", model)
        inside = set(trunk.modules())
        around = trunk if all(module in inside for module in self.modules) else model
        before = around.register_forward_pre_hook(self.assemble)
        return before, around.register_forward_hook(self.forget, always_call=True)

    def assemble(self, model: nn.Module, *_: Any) -> None:
        """Give each input the factors of its readers."""
        adapter = self.adapter
        # A layer that runs again would find its factors forgotten.
        if not adapter.is_stored or adapter.merged or runs_again(model) or is_gathered_late(adapter):
            return
        dtype = product_type(self.modules[0].get_parameter("weight"))
        blocks = {slot.key: adapter.blocks(slot) for slot in adapter.slots}
        stacks, rows = zip(
            *(stack_blocks([blocks[slot.key].A for slot in its.slots]) for its in self.inputs), strict=True
        )
        every_A = [_Factor(stack, its.slots[0].in_features) for its, stack in zip(self.inputs, stacks, strict=True)]
        every_B = [
            _Factor(blocks[slot.key].B, slot.out_features, blocks[slot.key].scale)
            for its in self.inputs
            for slot in its.slots
        ]
        found_B = iter(_assembled(every_B, dtype, side="B"))
        for its, A, of_each in zip(self.inputs, _assembled(every_A, dtype, side="A"), rows, strict=True):
            B = {slot.key: next(found_B) for slot in its.slots}
            its.ready = Ready(A, of_each, B, dtype, torch.is_grad_enabled())

    def forget(self, *_: Any) -> None:
        """Drop the factors: the next pass has others."""
        for its in self.inputs:
            its.ready = None


class _Factor(NamedTuple):
    """A factor before assembly."""

    blocks: Sequence[Block]
    length: int
    scale: float = 1.0

    def layout(self) -> tuple[Any, ...]:
        """What factors that are assembled together have in common."""
        blocks = [(b.shared.shape, b.kernel is not None and b.kernel.shape, b.start, b.per_rank) for b in self.blocks]
        return self.length, self.scale, *blocks


def _assembled(factors: Sequence[_Factor], dtype: torch.dtype, *, side: str) -> list[Tensor]:
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, factor in enumerate(factors):
        places.setdefault(factor.layout(), []).append(place)
    found: dict[int, Tensor] = {}
    for (length, scale, *_), alike in places.items():
        of_layout = [factors[place].blocks for place in alike]
        found |= zip(alike, assemble_each(of_layout, length=length, dtype=dtype, scale=scale, side=side), strict=True)
    return [found[place] for place in range(len(factors))]
