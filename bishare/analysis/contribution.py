"""What each level of an adapter contributes: its share of the norm, and the loss when levels are switched off.

Zhou et al., "Bi-Share LoRA", ICML 2025, Figure 4b, asks how much the levels contribute by training them apart; here one
trained adapter is taken apart.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bishare.adapters.base import Adapter
from bishare.adapters.factors import Slot
from bishare.analysis.levels import WHOLE, measure_levels
from bishare.ops.assembly import Block, Blocks


@dataclass(frozen=True, kw_only=True)
class LevelLosses:
    """Losses on some data, in nats per label."""

    all: float
    """Of the whole adapter."""
    none: float
    """Of the base model."""
    without: Mapping[str, float]
    """By the level that is switched off."""
    only: Mapping[str, float]
    """By the one level that is left on."""


def levels_of(adapter: Adapter) -> list[str]:
    """Names of the adapter's levels."""
    return list(dict.fromkeys(level for slot in adapter.slots for level in adapter.parts(slot)))


def norm_shares(adapter: Adapter) -> dict[str, dict[Slot, float]]:
    """For every slot, each level's Frobenius norm over the sum of all its levels' norms; 0 where that is 0."""
    measured = {level: slots for level, slots in measure_levels(adapter).items() if level != WHOLE}
    total = {slot: sum(slots[slot].norm for slots in measured.values() if slot in slots) for slot in adapter.slots}
    return {
        level: {slot: rank.norm / total[slot] if total[slot] else 0.0 for slot, rank in slots.items()}
        for level, slots in measured.items()
    }


def level_losses(adapter: Adapter, loss: Callable[[], float]) -> LevelLosses:
    """Measure the loss with levels switched off, one pass for each way.

    Args:
        adapter: In the model whose loss it is.
        loss: Measures it, in nats per label.
    """
    levels = levels_of(adapter)

    def without(off: Collection[str]) -> float:
        with switched_off(adapter, off):
            return loss()

    full, base = loss(), without(levels)
    if len(levels) == 1:
        return LevelLosses(all=full, none=base, without={levels[0]: base}, only={levels[0]: full})
    return LevelLosses(
        all=full,
        none=base,
        without={level: without([level]) for level in levels},
        only={level: without([other for other in levels if other != level]) for level in levels},
    )


def num_passes(adapter: Adapter) -> int:
    """How often :func:`level_losses` measures the loss."""
    num_levels = len(levels_of(adapter))
    return 2 + (2 * num_levels if num_levels > 1 else 0)


@contextmanager
def switched_off(adapter: Adapter, levels: Collection[str]) -> Iterator[None]:
    """Leave levels out of every update for a while; the parameters stay as they are."""

    def blocks(slot: Slot) -> Blocks:
        parts = adapter.parts(slot)
        kept = [torch.zeros_like(part.B) if level in levels else part.B for level, part in parts.items()]
        return Blocks([Block(part.A) for part in parts.values()], [Block(B) for B in kept], 1.0)

    adapter.blocks = blocks  # type: ignore[method-assign]  # of this one adapter, until it is deleted again
    try:
        yield
    finally:
        del adapter.blocks
