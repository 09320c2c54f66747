"""How many layers of each group are to share a B, and after which optimizer steps: the options of adaptive merging.

Hu et al., 2024 (arXiv:2412.10135), section 3: shared training until ``start``, then a merge per group and event.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bishare.adapters.base import Adapter
from bishare.adapters.counts import LORA_RANK, num_lora_values, num_values
from bishare.adapters.merging import Candidates, Metric, Order
from bishare.errors import UserError

Schedule = Literal["fixed", "cubic"]


@dataclass(kw_only=True, eq=False)
class MergeOptions:
    """The options of ``callbacks.AdaptiveMerging``.

    Exactly one of ``num_merges``, ``target_groups`` and ``target_fraction`` says how far to merge.

    Raises:
        UserError: An option is out of range, or the goal is missing or given twice.
    """

    start: int = field(kw_only=False)
    """Optimizer steps of shared training before the merging stage (MRPC: 320)."""
    interval: int = field(kw_only=False)
    """Optimizer steps between two merges; the first is at ``start + interval`` (MRPC: 240)."""
    num_merges: int | None = None
    """Merges in every group (MRPC: 7)."""
    target_groups: int | None = None
    """Bs left in every group."""
    target_fraction: float | None = None
    """Live parameters left, as a fraction of a LoRA of rank ``lora_rank`` on the same weights."""
    lora_rank: int = LORA_RANK
    """Rank of the LoRA that parameters are compared with."""
    candidates: Candidates = "all"
    """``all`` pairs (Algorithm 1) or ``adjacent`` layers (the text below Algorithm 1)."""
    score: Literal["mean", "current"] = "mean"
    """Compare the running ``mean`` of each B over all steps, or the ``current`` value."""
    metric: Metric = "l2"
    """``l2``; ``relative`` l2; ``cosine``; ``correlation``; or ``effective``, ``|(B_i - B_j) A|``, the same in every
    basis of the rank space."""
    order: Order = "similar"
    """Most ``similar`` pair first, ``random``, most ``dissimilar``, or ``hierarchical`` (complete linkage of the means;
    a tied layer's mean stays as before the tie)."""
    schedule: Schedule = "fixed"
    """``fixed`` interval, or ``cubic``: as many merges in the same span, dense at first."""
    seed: int = 0
    """Seed of the random order."""

    def __post_init__(self) -> None:
        goals = self._goals()
        if len(goals) != 1:
            wanted = "num_merges, target_groups, target_fraction"
            raise UserError(f"AdaptiveMerging needs exactly one of {wanted}; given: {', '.join(goals) or 'none'}.")
        lowest = {"start": 0, "interval": 1, "num_merges": 1, "target_groups": 1, "lora_rank": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"AdaptiveMerging: {name} is {value}; it must be at least {low}.")
        if self.target_fraction is not None and not 0 < self.target_fraction < 1:
            raise UserError(f"AdaptiveMerging: target_fraction is {self.target_fraction}; it must be between 0 and 1.")
        if self.order == "hierarchical" and self.score == "current":
            raise UserError("AdaptiveMerging: order hierarchical compares running means; use it with score: mean.")

    def _goals(self) -> dict[str, float]:
        """The given options among the three that say how far to merge."""
        goals = {
            "num_merges": self.num_merges,
            "target_groups": self.target_groups,
            "target_fraction": self.target_fraction,
        }
        return {name: goal for name, goal in goals.items() if goal is not None}

    def merges_of(self, adapter: Adapter) -> dict[str, int]:
        """Merges by group of the adapter, from shapes alone: the same before, during and after the merges.

        Raises:
            UserError: No layers share an A, or merging all layers is too little for the goal.
        """
        groups = adapter.mergeable_groups()
        if not groups:
            raise nothing_to_merge(adapter.config.method)
        sizes = {name: Size(len(group.names), group.shape[0] * group.shape[1]) for name, group in groups.items()}
        if self.num_merges is not None:
            return merges_by_count(sizes, self.num_merges)
        if self.target_groups is not None:
            return merges_to_groups(sizes, self.target_groups)
        assert self.target_fraction is not None
        target = int(self.target_fraction * num_lora_values(adapter.slots, self.lora_rank))
        unmerged = num_values(p for p in adapter.parameters() if p.requires_grad)
        return merges_to_count(sizes, live=unmerged, target=target)

    def events_of(self, adapter: Adapter) -> dict[str, list[int]]:
        """Optimizer steps after which each group of the adapter merges; errors as for :meth:`merges_of`."""
        return {
            name: event_steps(start=self.start, interval=self.interval, num_merges=num, schedule=self.schedule)
            for name, num in self.merges_of(adapter).items()
        }


def nothing_to_merge(method: str) -> UserError:
    """The error for an adapter without mergeable groups."""
    return UserError(
        f"AdaptiveMerging: {method} as configured has nothing to merge, because its layers read As of their own. "
        "Set merging: true (bishare), use aslora, or leave the callback out."
    )


def event_steps(*, start: int, interval: int, num_merges: int, schedule: Schedule) -> list[int]:
    """Optimizer steps after which a group's 1st, 2nd, ... merge happens.

    ``fixed``: every step t > start where ``interval`` divides t - start. ``cubic``: the same span with many merges at
    first and few at the end; after the share x of the span, the share 1 - (1 - x)^3 of the merges is done.
    """
    if schedule == "fixed":
        return [start + k * interval for k in range(1, num_merges + 1)]
    steps: list[int] = []
    for k in range(1, num_merges + 1):
        share = 1 - (1 - k / num_merges) ** (1 / 3)
        # Rounding may put a whole step slightly above its number.
        step = start + math.ceil(share * num_merges * interval - 1e-9)
        steps.append(max(step, steps[-1] + 1 if steps else start + 1))
    return steps


class Size(NamedTuple):
    """Size of a group."""

    num_layers: int
    num_values: int
    """Number of values in a B."""


def merges_by_count(sizes: Mapping[str, Size], num_merges: int) -> dict[str, int]:
    """Plan the same number of merges in every group.

    Raises:
        UserError: A group is too small.
    """
    for name, size in sizes.items():
        if num_merges >= size.num_layers:
            raise UserError(
                f"num_merges is {num_merges}, but {name} has {size.num_layers} layers and so at most "
                f"{size.num_layers - 1} merges."
            )
    return dict.fromkeys(sizes, num_merges)


def merges_to_groups(sizes: Mapping[str, Size], target_groups: int) -> dict[str, int]:
    """Plan merges until every group has at most ``target_groups`` Bs left."""
    return {name: max(0, size.num_layers - target_groups) for name, size in sizes.items()}


def merges_to_count(sizes: Mapping[str, Size], *, live: int, target: int) -> dict[str, int]:
    """Plan merges until at most ``target`` of the ``live`` values are left, by turns in every group.

    Raises:
        UserError: More values are left after merging all layers.
    """
    planned = dict.fromkeys(sizes, 0)
    fewest = live - sum((size.num_layers - 1) * size.num_values for size in sizes.values())
    if fewest > target:
        raise UserError(
            f"target_fraction asks for {target:,} parameters, but merging all layers leaves {fewest:,}; raise it."
        )
    # Group after group, so that no group is merged much further than the rest.
    while live > target:
        for name, size in sizes.items():
            if live > target and planned[name] < size.num_layers - 1:
                planned[name] += 1
                live -= size.num_values
    return planned
