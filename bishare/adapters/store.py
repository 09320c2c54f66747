"""Named A and B matrices: weights that ask for the same name share the matrix.

Shapes: A [r, in], B [out, r].
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bishare.adapters.factors import Factors, Slot
from bishare.errors import UserError

SHARED = "all"
"""Name of a factor shared by all layers."""


class Store(nn.Module):
    """Named factors of a common rank: A drawn Kaiming uniform with a = sqrt(5), B zero (Hu et al., 2021).

    Args:
        rank: Rows of every A, columns of every B.
        in_features: Width of each A by name.
        out_features: Height of each B by name.
    """

    def __init__(self, rank: int, in_features: Mapping[str, int], out_features: Mapping[str, int]) -> None:
        super().__init__()
        self.rank = rank
        # A ParameterDict sorts the names of a given dictionary; their order decides the initial values.
        self.A = nn.ParameterDict({name: nn.Parameter(torch.empty(rank, n)) for name, n in in_features.items()})
        self.B = nn.ParameterDict({name: nn.Parameter(torch.empty(n, rank)) for name, n in out_features.items()})

    def pair(self, a: str, b: str) -> Factors:
        """The A named ``a`` [r, in] and the B named ``b`` [out, r], without the scale."""
        return Factors(self.A[a], self.B[b])

    def reset_parameters(self) -> None:
        """Draw every A once and set every B to zero."""
        for A in self.A.values():
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        for B in self.B.values():
            nn.init.zeros_(B)


def kind_name(slot: Slot) -> str:
    """Name of a factor shared by the weights of a kind: the kind, where a path loses its dots."""
    # Dots are not allowed in the keys of a ParameterDict.
    return slot.kind.replace(".", "_")


def by_kind(slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    """Group slots by :func:`kind_name`, in layer order, for methods whose layers share an A per kind.

    Raises:
        UserError: Weights of the same kind differ in shape.
    """
    kinds: dict[str, list[Slot]] = {}
    for slot in slots:
        kinds.setdefault(kind_name(slot), []).append(slot)
    for kind, members in kinds.items():
        members.sort(key=lambda slot: slot.layer)
        first = members[0]
        for slot in members:
            if (slot.in_features, slot.out_features) != (first.in_features, first.out_features):
                raise UserError(
                    f"{kind} is {first.out_features} x {first.in_features} in layer {first.layer} and "
                    f"{slot.out_features} x {slot.in_features} in layer {slot.layer}, and its layers share an A; "
                    "name layers of one shape in `layers`."
                )
    return kinds
