"""The plan of a batch: the rows of each adapter, adapters to assemble together, and the shapes of the factors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bishare.serving.batch_factors import StackShape, stack_shapes
from bishare.serving.compact_adapter import FP32, AssemblyKey, CompactAdapter, Layout

STAGED_BYTES = 64 << 20
"""Adapters are assembled together up to this size: for small adapters, calls take longer than values."""


@dataclass(frozen=True)
class Entry:
    """An adapter of a pool."""

    name: str
    folder: Path
    version: int
    """Distinguishes the adapter from an earlier adapter of the same name, which the caches may still hold."""


Loader = Callable[[Entry], AbstractContextManager[CompactAdapter]]
"""Keeps an adapter in memory while the context lasts."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The plan of a batch."""

    num_rows: int
    rows: Mapping[Entry, Sequence[int]]
    """Rows of each adapter."""
    shared: bool
    """Whether an adapter serves every row, so that the factors are stored once."""
    groups: Mapping[AssemblyKey, Sequence[Entry]]
    """Adapters that can be assembled together."""
    shapes: Mapping[str, Sequence[StackShape]]
    """Stacks of factors by weight."""

    def num_bytes(self, value_bytes: int) -> int:
        """Bytes of the factors, and of the scales around frozen pairs.

        Args:
            value_bytes: Bytes of a value of a factor.
        """
        num_values = sum(shape.num_values for shape in chain.from_iterable(self.shapes.values()))
        layouts = {layout for layout, _ in self.groups}
        num_scales = self.num_rows * sum(layout.num_scales for layout in layouts)
        return value_bytes * num_values + FP32 * num_scales

    def stages(self) -> Iterator[tuple[AssemblyKey, dict[Entry, Sequence[int]]]]:
        """Adapters to assemble in the same call, with the rows of each, up to ``STAGED_BYTES``."""
        for key, members in self.groups.items():
            layout, _ = key
            at_once = max(1, STAGED_BYTES // layout.num_bytes)
            for first in range(0, len(members), at_once):
                yield key, {entry: self.rows[entry] for entry in members[first : first + at_once]}


def plan_batch(entries: Sequence[Entry | None], loaded: Loader) -> BatchPlan:
    """Plan a batch.

    Args:
        entries: The adapter of each row, None for the base model.
        loaded: Loads an adapter; a single adapter is loaded at a time.
    """
    rows: dict[Entry, list[int]] = {}
    for row, entry in enumerate(entries):
        if entry is not None:
            rows.setdefault(entry, []).append(row)
    shared = len(rows) == 1 and None not in entries
    groups: dict[AssemblyKey, list[Entry]] = {}
    ranks = _RanksByWeight()
    for entry, rows_of_entry in rows.items():
        with loaded(entry) as adapter:
            groups.setdefault(adapter.assembly_key, []).append(entry)
            ranks.add(adapter.layout, [0] if shared else rows_of_entry)
    return BatchPlan(
        num_rows=len(entries),
        rows=rows,
        shared=shared,
        groups=groups,
        shapes=ranks.shapes(1 if shared else len(entries)),
    )


class _RanksByWeight:
    """Ranks of a batch's rows, for each weight with an adapter."""

    def __init__(self) -> None:
        self._ranks: dict[tuple[str, int, int], dict[int, int]] = {}
        """By weight (name, width, height), the rank of each row."""

    def add(self, layout: Layout, rows: Sequence[int]) -> None:
        for slot in layout.slots:
            # Weights with a frozen pair have no rank here: their update is a pair of scales.
            rank = layout.ranks.get(slot.name, 0)
            if rank:
                weight = (slot.name, slot.in_features, slot.out_features)
                self._ranks.setdefault(weight, {}).update(dict.fromkeys(rows, rank))

    def shapes(self, num_rows: int) -> dict[str, list[StackShape]]:
        found = {}
        for (name, width, height), by_row in self._ranks.items():
            found[name] = stack_shapes(by_row, num_rows, width, height)
        return found
