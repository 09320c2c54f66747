"""LoRA: a pair of factors for every weight.

Hu et al., 2021 (arXiv:2106.09685), eq. 3:  y = W x + (alpha / r) B A x

Shapes: A [r, in], B [out, r].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn
from typing_extensions import override

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.factors import Factors, Slot
from bishare.adapters.store import Store
from bishare.errors import UserError
from bishare.ops.assembly import Block, Blocks


@dataclass(kw_only=True)
class LoRAConfig(AdapterConfig):
    """LoRA: a pair of factors for every weight."""

    method: ClassVar[str] = "lora"

    scaling: Literal["fixed", "alpha/r", "rslora"] = "alpha/r"
    """``alpha/r`` as published, ``rslora`` for alpha / sqrt(r), ``fixed`` for ``scale``."""
    r: int = 8
    """Rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1:
            raise UserError(f"r is {self.r}; LoRA's rank must be at least 1.")

    @classmethod
    @override
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        return {"LoRA r=8": {"r": 8}}

    def build(self, slots: Sequence[Slot]) -> "LoRA":
        return LoRA(self, slots)


class LoRA(Adapter):
    """The parameters of LoRA."""

    is_stored: ClassVar[bool] = True

    def __init__(self, config: LoRAConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        self.scale = config.scale_for(config.r)
        widths = {slot.key: slot.in_features for slot in slots}
        heights = {slot.key: slot.out_features for slot in slots}
        self.local = Store(config.r, widths, heights)
        self.reset_parameters()

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        A, B = self.local.pair(slot.key, slot.key)
        return {"local": Factors(A, B * self.scale)}

    def blocks(self, slot: Slot) -> Blocks:
        A, B = self.local.pair(slot.key, slot.key)
        return Blocks([Block(A)], [Block(B)], self.scale)

    def reset_parameters(self) -> None:
        self.local.reset_parameters()

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"local.A": list(self.local.A.values()), "local.B": list(self.local.B.values())}
