"""VB-LoRA: every sub-vector of A and B is a mix of a few vectors from a bank shared by all weights.

Li et al., 2024 (arXiv:2405.15179), section 3.2:  u = Σ_{i in top-k(p)} softmax(top-k(p))_i bank[i]    (p: logits)

A fresh VB-LoRA is not a no-op: no factor is zero, so training starts near the base model, not at its outputs.

Shapes: bank [h, l]; logits of A [r, in / l, h], of B [out / l, r, h]; A [r, in], B [out, r].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.factors import Factors, Slot
from bishare.errors import UserError

BANK_BOUND = 0.02
"""The bank starts uniform in (-0.02, 0.02), as published."""
LOGITS_STD = 0.1
"""Logits start normal with variance 0.01, as published."""
MAX_LENGTH = 256
"""Published length of the bank's vectors."""


@dataclass(kw_only=True)
class VBLoRAConfig(AdapterConfig):
    """VB-LoRA: logits for every weight, to mix the vectors of a shared bank.

    Published learning rates: 0.01 for the logits and 0.001 for the bank (``learning_rate: 0.01``,
    ``lr_factors: {bank: 0.1}``).
    """

    method: ClassVar[str] = "vblora"

    scale: float = 1.0
    """Factor of the update with ``scaling: fixed`` (the paper has none)."""
    r: int = 4
    """Rank."""
    num_vectors: int = 90
    """Vectors in the bank."""
    vector_length: int | None = None
    """Length of the bank's vectors, a divisor of the width and height of every weight. If left out, the greatest
    divisor up to the published 256."""
    top_k: int = 2
    """Vectors mixed into a sub-vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("r", "num_vectors", "top_k"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.vector_length is not None and self.vector_length < 1:
            raise UserError(f"vector_length is {self.vector_length}; it must be at least 1.")
        if self.top_k > self.num_vectors:
            raise UserError(f"top_k is {self.top_k}, but the bank has only num_vectors {self.num_vectors}.")

    @classmethod
    @override
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        return {"VB-LoRA": {}}

    def build(self, slots: Sequence[Slot]) -> "VBLoRA":
        return VBLoRA(self, slots)


class VBLoRA(Adapter):
    """The parameters of VB-LoRA."""

    starts_as_noop: ClassVar[bool] = False
    config: VBLoRAConfig

    def __init__(self, config: VBLoRAConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        self.scale = config.scale_for(config.r)
        length, r, h = _vector_length(config, slots), config.r, config.num_vectors
        self.bank = nn.Parameter(torch.empty(h, length))
        # A ParameterDict sorts the keys of a given dictionary; their order decides the initial values.
        self.logits_A = nn.ParameterDict(
            {slot.key: nn.Parameter(torch.empty(r, slot.in_features // length, h)) for slot in slots}
        )
        self.logits_B = nn.ParameterDict(
            {slot.key: nn.Parameter(torch.empty(slot.out_features // length, r, h)) for slot in slots}
        )
        self.reset_parameters()

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        A = self._mix(self.logits_A[slot.key]).flatten(-2)
        B = self._mix(self.logits_B[slot.key]).mT.flatten(-3, -2)
        return {"local": Factors(A, B * self.scale)}

    def _mix(self, logits: Tensor) -> Tensor:
        """Sub-vectors [..., l] from logits [..., h]."""
        top = logits.topk(self.config.top_k, dim=-1)
        # A batch of several adapters has a bank of three dimensions.
        vectors = self.bank[top.indices] if self.bank.dim() == 2 else _each(self.bank, top.indices)
        return (top.values.softmax(-1).unsqueeze(-1) * vectors).sum(-2)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.bank, -BANK_BOUND, BANK_BOUND)
        for logits in (*self.logits_A.values(), *self.logits_B.values()):
            nn.init.normal_(logits, std=LOGITS_STD)

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {
            "inter.bank": [self.bank],
            "local.logits": [*self.logits_A.values(), *self.logits_B.values()],
        }


def _each(banks: Tensor, indices: Tensor) -> Tensor:
    """Vectors [m, ..., l] of several banks [m, h, l], for each bank by its own indices [m, ...]."""
    numbers = torch.arange(len(banks), device=banks.device)
    return banks[numbers.view(-1, *[1] * (indices.dim() - 1)), indices]


def _vector_length(config: VBLoRAConfig, slots: Sequence[Slot]) -> int:
    """The given length, or the greatest divisor up to 256 of every weight's width and height.

    Raises:
        UserError: The given length is no divisor.
    """
    common = 0  # of which every number is a divisor
    for slot in slots:
        common = math.gcd(common, slot.in_features, slot.out_features)
    fitting = max(n for n in range(1, MAX_LENGTH + 1) if common % n == 0)
    if config.vector_length is None:
        return fitting
    for slot in slots:
        if slot.in_features % config.vector_length or slot.out_features % config.vector_length:
            raise UserError(
                f"vector_length is {config.vector_length}, which does not divide {slot.name} "
                f"({slot.out_features} x {slot.in_features}); try {fitting}."
            )
    return config.vector_length
