"""The contribution of each level of an adapter: share of the norm, and the loss with levels switched off.

Zhou et al., "Bi-Share LoRA", ICML 2025, Figure 4b. The paper trains every combination of levels on its own; here the
levels of a single trained adapter are switched off.
"""

from collections import defaultdict
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
    """Loss of the whole adapter."""
    none: float
    """Loss of the base model."""
    without: Mapping[str, float]
    """Loss with a level switched off, by the level."""
    only: Mapping[str, float]
    """Loss with a single level left on, by the level."""


def levels_of(adapter: Adapter) -> list[str]:
    """Names of the adapter's levels."""
    levels: dict[str, None] = {}  # an ordered set
    for slot in adapter.slots:
        levels |= dict.fromkeys(adapter.parts(slot))
    return list(levels)


def norm_shares(adapter: Adapter) -> dict[str, dict[Slot, float]]:
    """Every slot's share of each level: the level's Frobenius norm over the sum of the norms of the slot's levels.

    A share is 0 where the sum is 0.
    """
    measured = measure_levels(adapter)
    measured.pop(WHOLE, None)
    total: dict[Slot, float] = defaultdict(float)
    for slots in measured.values():
        for slot, rank in slots.items():
            total[slot] += rank.norm
    shares: dict[str, dict[Slot, float]] = {}
    for level, slots in measured.items():
        # Where the sum is 0, so is the norm: 0 / 1.
        shares[level] = {slot: rank.norm / (total[slot] or 1.0) for slot, rank in slots.items()}
    return shares


def level_losses(adapter: Adapter, loss: Callable[[], float]) -> LevelLosses:
    """Measure the loss with levels switched off, in a pass for each combination.

    Args:
        adapter: The adapter, attached to the model that ``loss`` evaluates.
        loss: Measures the loss of the model, in nats per label.
    """
    levels = levels_of(adapter)

    def without(off: Collection[str]) -> float:
        with switched_off(adapter, off):
            return loss()

    full, base = loss(), without(levels)
    if len(levels) == 1:  # the two passes say everything
        return LevelLosses(all=full, none=base, without={levels[0]: base}, only={levels[0]: full})
    return LevelLosses(
        all=full,
        none=base,
        without={level: without({level}) for level in levels},
        only={level: without({*levels} - {level}) for level in levels},
    )


def num_passes(adapter: Adapter) -> int:
    """Number of times :func:`level_losses` measures the loss."""
    num_levels = len(levels_of(adapter))
    return 2 + (2 * num_levels if num_levels > 1 else 0)


@contextmanager
def switched_off(adapter: Adapter, levels: Collection[str]) -> Iterator[None]:
    """Leave levels out of every update inside a ``with`` block; the parameters stay as they are."""

    def blocks(slot: Slot) -> Blocks:
        of_A, of_B = [], []
        for level, part in adapter.parts(slot).items():
            # Zeros rather than no block: with all levels off, a factor would have no rows.
            B = torch.zeros_like(part.B) if level in levels else part.B
            of_A.append(Block(part.A))
            of_B.append(Block(B))
        return Blocks(of_A, of_B, 1.0)

    adapter.blocks = blocks  # type: ignore[method-assign]  # hides the method of the class until ``del``
    try:
        yield
    finally:
        del adapter.blocks
