"""How many values an adapter trains: live and dead ones, by part, beside plain LoRA and the base model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from bishare.adapters.base import Adapter
from bishare.adapters.counts import num_lora_values, num_values


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """The trainable values of one adapter, counted."""

    live: Mapping[str, int]
    """Values that some weight's update reads, by part (``local.A``, ``intra.kernel``, ...)."""
    dead: Mapping[str, int]
    """Values that no update reads any more because their layer uses another layer's, by part; the same keys."""
    lora: int
    """Values of a LoRA of rank 8 on the same weights."""
    base: int
    """Values of the base model, without what is trained in full."""
    head: int = 0
    """Values trained in full beside the adapter: a classification head. They are in none of the other numbers."""

    @property
    def num_live(self) -> int:
        return sum(self.live.values())

    @property
    def num_dead(self) -> int:
        return sum(self.dead.values())

    @property
    def fraction_of_lora(self) -> float:
        """Live values over those of a LoRA of rank 8 on the same weights."""
        return self.num_live / self.lora

    @property
    def fraction_of_base(self) -> float:
        """Live values over the base model's."""
        return self.num_live / self.base


def count_parameters(adapter: Adapter, base: nn.Module, head: Iterable[nn.Parameter] = ()) -> ParameterReport:
    """Count an adapter's values; needs shapes only, so it works on the meta device too.

    Args:
        adapter: The adapter to count.
        base: The model it adapts, with or without the adapter inside; a tied weight counts once.
        head: Parameters of ``base`` that are trained in full.
    """
    num_head = num_values(head)
    live = {id(parameter) for parameter in adapter.live_parameters().values()}
    groups = adapter.groups()
    return ParameterReport(
        live={part: num_values(p for p in group if id(p) in live) for part, group in groups.items()},
        dead={part: num_values(p for p in group if id(p) not in live) for part, group in groups.items()},
        lora=num_lora_values(adapter.slots),
        base=num_base_values(base, adapter) - num_head,
        head=num_head,
    )


def num_base_values(base: nn.Module, adapter: Adapter) -> int:
    """Values of the base model's parameters, those of the adapter left out."""
    adapted = {id(parameter) for parameter in adapter.parameters()}
    return num_values(p for p in base.parameters() if id(p) not in adapted)
