"""Stored factors, each under a name: who shares one is decided by who asks for the same name."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from bishare.adapters.base import Factors


class Store(nn.Module):
    """Named factors of one rank: A drawn at the start (Kaiming uniform, a = sqrt(5)), B zero (Hu et al., 2021).

    Args:
        rank: Rows of every A, columns of every B.
        in_features: Width of each A, by its name.
        out_features: Height of each B, by its name.
    """

    def __init__(self, rank: int, in_features: Mapping[str, int], out_features: Mapping[str, int]) -> None:
        super().__init__()
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
