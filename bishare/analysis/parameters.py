"""Numbers of trainable values of an adapter: live and dead values by part, beside plain LoRA and the base model.

A value is live if some weight's update reads the value; merging layers leaves dead values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from bishare.adapters.base import Adapter
from bishare.adapters.counts import num_lora_values, num_values


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """Numbers of an adapter's trainable values."""

    live: Mapping[str, int]
    """Values read by some weight's update, by part (``local.A``, ``intra.kernel``, ...)."""
    dead: Mapping[str, int]
    """Values of merged layers, read by no update any more, by part; the same keys as ``live``."""
    lora: int
    """Values of a LoRA of rank 8 on the same weights."""
    base: int
    """Values of the base model, without the fully trained head."""
    head: int = 0
    """Values trained in full beside the adapter, in a classification head; no other field counts these values."""

    @property
    def num_live(self) -> int:
        return sum(self.live.values())

    @property
    def num_dead(self) -> int:
        return sum(self.dead.values())

    @property
    def fraction_of_lora(self) -> float:
        """Live values over the values of a LoRA of rank 8 on the same weights."""
        return self.num_live / self.lora

    @property
    def fraction_of_base(self) -> float:
        """Live values over the values of the base model."""
        return self.num_live / self.base


def count_parameters(adapter: Adapter, base: nn.Module, head: Iterable[nn.Parameter] = ()) -> ParameterReport:
    """Count an adapter's values; works on the meta device too, because only shapes are needed.

    Args:
        adapter: The adapter to count.
        base: The adapted model, with or without the adapter inside; a tied weight counts once.
        head: Parameters of ``base`` that are trained in full.
    """
    num_head = num_values(head)
    live_ids = set(map(id, adapter.live_parameters().values()))
    live, dead = {}, {}
    for part, group in adapter.groups().items():
        num_live = num_values(parameter for parameter in group if id(parameter) in live_ids)
        live[part], dead[part] = num_live, num_values(group) - num_live
    return ParameterReport(
        live=live,
        dead=dead,
        lora=num_lora_values(adapter.slots),
        base=num_base_values(base, adapter) - num_head,
        head=num_head,
    )


def num_base_values(base: nn.Module, adapter: Adapter) -> int:
    """Values of the base model's parameters, without the adapter's."""
    adapted = set(map(id, adapter.parameters()))
    return num_values(parameter for parameter in base.parameters() if id(parameter) not in adapted)
