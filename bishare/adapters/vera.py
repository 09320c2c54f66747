"""VeRA: all weights share a frozen random pair, and each weight scales the rows of A and B by trained vectors.

Kopiczko et al., 2023 (arXiv:2310.11454), eq. 2:  y = W x + Λ_b B Λ_d A x

The random pair is drawn from a seed and never stored. A checksum of the pair is stored, so that an adapter is never
used with a different pair by mistake.

Shapes: A [r, max in], of which a weight reads the first columns; B [max out, r], of which a weight reads the first
rows; d [r], b [out].
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.factors import Factors, Scaled, Slot
from bishare.errors import UserError
from bishare.ops.assembly import Block, Blocks


@dataclass(kw_only=True)
class VeRAConfig(AdapterConfig):
    """VeRA: vectors for every weight, around a frozen random pair."""

    method: ClassVar[str] = "vera"

    scale: float = 1.0
    """Factor of the update with ``scaling: fixed`` (the paper has none)."""
    r: int = 256
    """Rank of the random pair."""
    d_initial: float = 0.1
    """Initial value of every d; every b starts at zero."""
    seed: int = 0
    """Seed of the random pair; draws the same values as PEFT's ``projection_prng_key``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1:
            raise UserError(f"r is {self.r}; VeRA's rank must be at least 1.")
        if self.d_initial == 0:
            raise UserError("d_initial is 0, from which VeRA never moves: b starts at zero too; try 0.1.")

    def build(self, slots: Sequence[Slot]) -> "VeRA":
        return VeRA(self, slots)


class VeRA(Adapter):
    """The parameters of VeRA, and the random pair."""

    config: VeRAConfig
    A: Tensor
    B: Tensor
    checksum: Tensor  # [32], uint8: SHA-256 of the A and B with which the values were trained

    def __init__(self, config: VeRAConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        self.scale = config.scale_for(config.r)
        max_in, max_out = max(slot.in_features for slot in slots), max(slot.out_features for slot in slots)
        # Not persistent: the seed gives the values again.
        self.register_buffer("A", torch.empty(config.r, max_in), persistent=False)
        self.register_buffer("B", torch.empty(max_out, config.r), persistent=False)
        self.register_buffer("checksum", torch.zeros(32, dtype=torch.uint8))
        if not self.A.is_meta:  # shapes alone have no values to draw
            generator = torch.Generator("cpu").manual_seed(config.seed)
            _kaiming_uniform_(self.A, generator)
            _kaiming_uniform_(self.B, generator)
            self.checksum.copy_(self._checksum())
        self.d = nn.ParameterDict({slot.key: nn.Parameter(torch.empty(config.r)) for slot in slots})
        self.b = nn.ParameterDict({slot.key: nn.Parameter(torch.empty(slot.out_features)) for slot in slots})
        self.reset_parameters()

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        return {"local": Factors(self.A[:, : slot.in_features], self._b(slot) * self.d[slot.key] * self.scale)}

    def blocks(self, slot: Slot) -> Blocks:
        # d scales the columns of B, so A is the same for all weights: weights with the same input form x Aᵀ once, and
        # A has no gradient. Scaling by d is a Kronecker product with kernels [1, 1], so nothing more is kept for
        # backward. Under DeepSpeed with bf16 the forward pass reads bf16 vectors; the random pair stays fp32.
        d = self.d[slot.key].to(self.B.dtype)
        return Blocks([Block(self.A)], [Block(self._b(slot), d.unsqueeze(0), per_rank=True)], self.scale)

    @override
    def scaled(self, slot: Slot) -> Scaled:
        A, B = self.A[:, : slot.in_features], self.B[: slot.out_features]
        return Scaled(A, self.d[slot.key], B, self.b[slot.key] * self.scale)

    def _b(self, slot: Slot) -> Tensor:
        b: Tensor = self.b[slot.key]
        return b.unsqueeze(1) * self.B[: slot.out_features]

    def reset_parameters(self) -> None:
        for d in self.d.values():
            nn.init.constant_(d, self.config.d_initial)
        for b in self.b.values():
            nn.init.zeros_(b)

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"local.b": list(self.b.values()), "local.d": list(self.d.values())}

    @override
    def file_buffers(self) -> dict[str, Tensor]:
        return {"checksum": self.checksum}

    @override
    def refresh(self) -> None:
        """Compare the loaded checksum with the drawn pair.

        Raises:
            UserError: Checksums differ: the values were trained with a different random pair.
        """
        if not self.A.is_meta and not torch.equal(self.checksum.cpu(), self._checksum()):
            raise UserError(
                f"the random matrices of seed {self.config.seed} are not those that these values were trained with "
                "(another version of torch draws other numbers, or the file is damaged); use the version that trained "
                "it, or an export."
            )

    def _checksum(self) -> Tensor:
        digest = hashlib.sha256()
        for random in (self.A, self.B):
            digest.update(random.float().cpu().numpy().tobytes())
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _kaiming_uniform_(random: Tensor, generator: torch.Generator) -> None:
    """Draw uniformly with bound sqrt(6 / columns) (He et al., 2015), the same bits on every machine."""
    bound = math.sqrt(6.0 / random.shape[1])
    # 2u - 1 is exact and the product rounds once; in uniform_ the number of roundings depends on the compiler.
    draws = torch.rand(random.shape, generator=generator, device="cpu")
    random.copy_((2.0 * draws - 1.0) * bound)
