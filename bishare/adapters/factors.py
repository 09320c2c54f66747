"""The low-rank factors of a weight's update, and the slot where the weight stands in the model.

Shapes: A [r, in], B [out, r].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Low-rank factors of a weight's update, ``delta W = B @ A``."""

    A: Tensor  # [r, in]
    B: Tensor  # [out, r]

    @property
    def rank(self) -> int:
        """Rows of A: an upper bound of the update's rank."""
        return self.A.shape[0]


class Scaled(NamedTuple):
    """An update through a frozen pair shared by all weights, ``delta W = diag(b) B diag(d) A``; d and b are trained."""

    A: Tensor  # [r, in]
    d: Tensor  # [r]
    B: Tensor  # [out, r]
    b: Tensor  # [out], the scale inside


def stack(parts: Sequence[Factors]) -> Factors:
    """Add updates by stacking their ranks: ``B1 A1 + B2 A2 = [B1 B2] [A1; A2]``."""
    if len(parts) == 1:
        return parts[0]
    return Factors(torch.cat([p.A for p in parts], dim=0), torch.cat([p.B for p in parts], dim=1))


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A weight to adapt: its place in the model, and its shape."""

    name: str
    """Module path in the base model, e.g. ``model.layers.3.self_attn.q_proj``."""
    layer: int
    """Index of the repeated block, counted over the model's module tree."""
    kind: str
    """Which weight of the block: ``q``, ``k``, ``v``, ``up``, ``down``, or a path inside the block."""
    in_features: int
    out_features: int

    @property
    def key(self) -> str:
        """Name of this slot in parameter dictionaries and adapter files, unique in the model."""
        return f"{self.layer}-{self.kind.replace('.', '_')}"
