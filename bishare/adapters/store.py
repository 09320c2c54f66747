"""Stored factors, each under a name: who shares one is decided by who asks for the same name."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bishare.adapters.factors import Factors, Slot
from bishare.errors import UserError

SHARED = "all"
"""Name of a factor that all layers share."""


class Store(nn.Module):
    """Named factors of one rank: A drawn at the start (Kaiming uniform, a = sqrt(5)), B zero (Hu et al., 2021).

    Args:
        rank: Rows of every A, columns of every B.
        in_features: Width of each A, by its name.
        out_features: Height of each B, by its name.
    """

    def __init__(self, rank: int, in_features: Mapping[str, int], out_features: Mapping[str, int]) -> None:
        super().__init__()
        self.rank = rank
        self.A = nn.ParameterDict({name: nn.Parameter(torch.empty(rank, n)) for name, n in in_features.items()})
        self.B = nn.ParameterDict({name: nn.Parameter(torch.empty(n, rank)) for name, n in out_features.items()})

    def pair(self, a: str, b: str) -> Factors:
        """The A and the B of these names: A [r, in], B [out, r], without the scale."""
        return Factors(self.A[a], self.B[b])

    def reset_parameters(self) -> None:
        """Draw every A once and set every B to zero."""
        for A in self.A.values():
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        for B in self.B.values():
            nn.init.zeros_(B)


def kind_name(slot: Slot) -> str:
    """Name of a factor that the weights of one kind share: the kind, which may be a path, without its dots."""
    return slot.kind.replace(".", "_")


def by_kind(slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    """The weights of each kind in layer order, by :func:`kind_name`, for methods whose layers share an A per kind.

    Raises:
        UserError: Weights of one kind differ in shape.
    """
    kinds: dict[str, list[Slot]] = {}
    for slot in slots:
        kinds.setdefault(kind_name(slot), []).append(slot)
    for kind, of_kind in kinds.items():
        of_kind.sort(key=lambda slot: slot.layer)
        first = of_kind[0]
        for slot in of_kind:
            if (slot.in_features, slot.out_features) != (first.in_features, first.out_features):
                raise UserError(
                    f"{kind} is {first.out_features} x {first.in_features} in layer {first.layer} and "
                    f"{slot.out_features} x {slot.in_features} in layer {slot.layer}, and its layers share an A; "
                    "name layers of one shape in `layers`."
                )
    return kinds
