"""A method of a single file, which the tests register: an update of rank one.

y = x Wᵀ + scale (x · a) b        a [in], b [out]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.factors import Factors, Slot


@dataclass(kw_only=True)
class ToyConfig(AdapterConfig):
    """Toy: two vectors for every weight."""

    method: ClassVar[str] = "toy"

    spread: float = 0.5
    """Standard deviation of a fresh a."""

    def build(self, slots: Sequence[Slot]) -> "Toy":
        return Toy(self, slots)


class Toy(Adapter):
    """The parameters of the toy."""

    config: ToyConfig

    def __init__(self, config: ToyConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        self.a = nn.ParameterDict({slot.key: nn.Parameter(torch.empty(1, slot.in_features)) for slot in slots})
        self.b = nn.ParameterDict({slot.key: nn.Parameter(torch.empty(slot.out_features, 1)) for slot in slots})
        self.reset_parameters()

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        return {"local": Factors(self.a[slot.key], self.b[slot.key] * self.config.scale)}

    def reset_parameters(self) -> None:
        for a in self.a.values():
            nn.init.normal_(a, std=self.config.spread)
        for b in self.b.values():
            nn.init.zeros_(b)

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"local.A": list(self.a.values()), "local.B": list(self.b.values())}
