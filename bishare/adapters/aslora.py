"""ASLoRA: an A shared by all layers and a B per layer; layers with similar Bs merge and share a B.

Hu et al., 2024 (arXiv:2412.10135), eq. 2:  h_i = W_i x + (alpha / r) B_i A x

Merging happens while training (``callbacks.AdaptiveMerging``). Without merging the method is ShareLoRA with a
shared A.

Shapes: A [r, in], per kind of weight or for all kinds; B_i [out, r].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.factors import Factors, Slot
from bishare.adapters.mergeable_groups import MergeableGroup
from bishare.adapters.store import SHARED, Store, by_kind, kind_name
from bishare.errors import UserError
from bishare.ops.assembly import Block, Blocks


@dataclass(kw_only=True)
class ASLoRAConfig(AdapterConfig):
    """ASLoRA: an A shared by all layers and a B per layer and kind, mergeable across layers."""

    method: ClassVar[str] = "aslora"

    scaling: Literal["fixed", "alpha/r", "rslora"] = "alpha/r"
    """``alpha/r`` as published, ``rslora`` for alpha / sqrt(r), ``fixed`` for ``scale``."""
    r: int = 8
    """Rank (published: 8 on GLUE, 64 on LLaMA-2-7B)."""
    a_scope: Literal["per_kind", "global"] = "per_kind"
    """``per_kind``: an A for each kind of weight; ``global``: a single A, where all inputs are equally wide."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1:
            raise UserError(f"r is {self.r}; ASLoRA's rank must be at least 1.")

    @property
    def mergeable(self) -> bool:
        return True

    def build(self, slots: Sequence[Slot]) -> "ASLoRA":
        return ASLoRA(self, slots)


class ASLoRA(Adapter):
    """The parameters of ASLoRA, and a mergeable group per kind."""

    is_stored: ClassVar[bool] = True
    config: ASLoRAConfig

    def __init__(self, config: ASLoRAConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        self.scale = config.scale_for(config.r)
        kinds = by_kind(slots)
        widths = {kind: members[0].in_features for kind, members in kinds.items()}
        if config.a_scope == "global":
            # A single A has a single width.
            if len(set(widths.values())) > 1:
                shown = ", ".join(f"{kind} {width}" for kind, width in widths.items())
                raise UserError(f"a_scope is global, but the inputs differ in width ({shown}); use a_scope: per_kind.")
            widths = {SHARED: slots[0].in_features}
        self.local = Store(config.r, widths, {slot.key: slot.out_features for slot in slots})
        for kind, members in kinds.items():
            self.add_group(
                MergeableGroup(
                    f"local.{kind}",
                    layers=[slot.layer for slot in members],
                    names=[slot.key for slot in members],
                    B=self.local.B,
                    A=self.local.A,
                    a=self._a(members[0]),
                    shape=(members[0].out_features, config.r),
                )
            )
        self.reset_parameters()

    def _a(self, slot: Slot) -> str:
        """Name of the A read by a weight."""
        return SHARED if self.config.a_scope == "global" else kind_name(slot)

    def _stored(self, slot: Slot) -> Factors:
        return self.local.pair(self._a(slot), self.b_name(f"local.{kind_name(slot)}", slot.key))

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        A, B = self._stored(slot)
        return {"local": Factors(A, B * self.scale)}

    def blocks(self, slot: Slot) -> Blocks:
        A, B = self._stored(slot)
        return Blocks([Block(A)], [Block(B)], self.scale)

    def reset_parameters(self) -> None:
        """Draw A from a Gaussian, set B to zero and untie all layers."""
        # Variance 1 / (3 in), as in the uniform A of the remaining methods.
        for A in self.local.A.values():
            nn.init.kaiming_normal_(A, a=math.sqrt(5))
        for B in self.local.B.values():
            nn.init.zeros_(B)
        for group in self.mergeable_groups().values():
            group.reset()

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"local.A": list(self.local.A.values()), "local.B": list(self.local.B.values())}
