"""The levels of an adapter's updates (``local``, ``intra``, ``inter``) and their sum, each with its rank."""

from collections import defaultdict

import torch

from bishare.adapters.base import Adapter
from bishare.adapters.factors import Factors, Slot, stack
from bishare.analysis.ranks import UpdateRank, measure

WHOLE = "whole"
"""Level under which the sum of all levels is reported."""


@torch.no_grad()
def updates_by_level(adapter: Adapter) -> dict[str, dict[Slot, Factors]]:
    """Every slot's update, by level; the sum of several levels comes first, as ``whole``."""
    updates: dict[str, dict[Slot, Factors]] = defaultdict(dict)
    for slot in adapter.slots:
        parts = adapter.parts(slot)
        if len(parts) > 1:
            updates[WHOLE][slot] = stack(list(parts.values()))
        for level, factors in parts.items():
            updates[level][slot] = factors
    return dict(updates)


def measure_levels(adapter: Adapter) -> dict[str, dict[Slot, UpdateRank]]:
    """Every slot's update measured, by level; the sum of several levels comes first, as ``whole``."""
    updates = updates_by_level(adapter)
    return {level: dict(zip(slots, measure(list(slots.values())), strict=True)) for level, slots in updates.items()}


def bound(slot: Slot, update: Factors) -> int:
    """The highest rank that the update can have."""
    return min(update.rank, slot.in_features, slot.out_features)
