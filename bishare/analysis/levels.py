"""The updates of an adapter by level (``local``, ``intra``, ``inter``) and their sum, with ranks and norms.

Shapes: factors A [r, in], B [out, r].
"""

from collections import defaultdict

import torch

from bishare.adapters.base import Adapter
from bishare.adapters.factors import Factors, Slot, stack
from bishare.analysis.ranks import UpdateRank, measure

WHOLE = "whole"
"""Level under which the sum of all levels is reported."""


@torch.no_grad()
def updates_by_level(adapter: Adapter) -> dict[str, dict[Slot, Factors]]:
    """Every slot's update, by level. The sum of several levels comes first, as ``whole``."""
    updates: dict[str, dict[Slot, Factors]] = defaultdict(dict)
    for slot in adapter.slots:
        parts = adapter.parts(slot)
        if len(parts) > 1:  # a single level is its own sum
            updates[WHOLE][slot] = stack(list(parts.values()))
        for level, factors in parts.items():
            updates[level][slot] = factors
    return dict(updates)


def measure_levels(adapter: Adapter) -> dict[str, dict[Slot, UpdateRank]]:
    """Ranks and norm of every slot's update, by level. The sum of several levels comes first, as ``whole``."""
    measured = {}
    for level, slots in updates_by_level(adapter).items():
        # Together: measure batches the updates of equal shape.
        measured[level] = dict(zip(slots, measure(list(slots.values())), strict=True))
    return measured


def bound(slot: Slot, update: Factors) -> int:
    """The highest possible rank of the update."""
    return min(update.rank, slot.in_features, slot.out_features)
