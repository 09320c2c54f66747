"""Bi-Share LoRA: an update of three parts - a weight's own, one shared in its layer, one shared by all layers.

Zhou et al., "Bi-Share LoRA", ICML 2025:  delta W = s (B_loc A_loc + T(B_intra, A_intra) + T(B_inter, A_inter))

T fits a shared pair to the weight: Slice Sharing, Gate Transformation or Kronecker Extension (transforms.py).
The three parts are stacked along the rank, so the update costs one pair of matrix products.

Shapes: A [r_local + r_intra + r_inter, in], B [out, the same] (gate: r_local + 1 + 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from bishare.adapters.base import Adapter, AdapterConfig, Factors, Slot
from bishare.adapters.store import Store
from bishare.adapters.transforms import FitInit, Gate, KernelForm, Kronecker, Position, Slice, Transform
from bishare.errors import UserError

TRANSFORMS: dict[str, type[Transform]] = {"slice": Slice, "gate": Gate, "kronecker": Kronecker}
SHARED = "all"  # name of the one pair that all layers share


@dataclass(kw_only=True)
class BiShareConfig(AdapterConfig):
    """Bi-Share LoRA: local, intra-layer and inter-layer updates."""

    method: ClassVar[str] = "bishare"

    transform: Literal["slice", "gate", "kronecker"] = "kronecker"
    """How a shared pair is fitted to weights of different shapes."""
    r_local: int = 2
    """Rank of each weight's own pair; 0 turns it off."""
    r_intra: int = 4
    """Rank of the pair shared by the weights of one layer; 0 turns it off."""
    r_inter: int = 16
    """Rank of the pair shared by all layers; 0 turns it off."""
    position: Position = "center"
    """Slice: where in the shared pair a smaller weight's window lies."""
    size: int = 256
    """Gate and kronecker: width and height of the shared pair (the paper: 1024 for gate, 256 for kronecker)."""
    kernel: KernelForm = "shared"
    """Kronecker: form of the kernels, (rows of the shared part)_(rows of the kernel); ``shared`` is ``r_1``."""
    fit_init: FitInit = "kaiming_uniform"
    """Gate and kronecker: initial values of gates and kernels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranks = {"r_local": self.r_local, "r_intra": self.r_intra, "r_inter": self.r_inter}
        for name, rank in ranks.items():
            if rank < 0:
                raise UserError(f"{name} is {rank}; a rank must be 0 (off) or positive.")
        if not any(ranks.values()):
            raise UserError("r_local, r_intra and r_inter are all 0; at least one must be positive.")
        if self.size < 1:
            raise UserError(f"size is {self.size}; the shared pair needs at least size 1.")

    @property
    def rank(self) -> int:
        """Rows of every assembled A: an upper bound of the update's rank."""

        def level(rank: int) -> int:
            if self.transform == "gate":
                return min(rank, 1)
            return 2 * rank if self.transform == "kronecker" and self.kernel in ("r_2", "2_r") else rank

        return self.r_local + level(self.r_intra) + level(self.r_inter)

    def build(self, slots: Sequence[Slot]) -> "BiShare":
        return BiShare(self, slots)


class BiShare(Adapter):
    """The parameters of Bi-Share LoRA: stores of pairs, and a transform per weight and shared level."""

    config: BiShareConfig

    def __init__(self, config: BiShareConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        self.local = Store(
            config.r_local,
            {slot.key: slot.in_features for slot in slots} if config.r_local else {},
            {slot.key: slot.out_features for slot in slots} if config.r_local else {},
        )
        layers = {str(slot.layer) for slot in slots}
        self.intra, self.intra_fit = self._shared_level(config.r_intra, sorted(layers, key=int))
        self.inter, self.inter_fit = self._shared_level(config.r_inter, [SHARED])
        self.scale = config.scale_for(config.rank)
        self.reset_parameters()

    def _shared_level(self, rank: int, names: Sequence[str]) -> tuple[Store, nn.ModuleDict]:
        """A store with one pair per name, and every weight's transform; both empty at rank 0."""
        config = self.config
        if rank == 0:
            return Store(0, {}, {}), nn.ModuleDict()
        max_in = max(slot.in_features for slot in self.slots)
        max_out = max(slot.out_features for slot in self.slots)

        def fit(slot: Slot) -> Transform:
            n, m = slot.in_features, slot.out_features
            if config.transform == "slice":
                return Slice(n, m, max_in, max_out, config.position)
            if config.transform == "gate":
                return Gate(n, m, config.size, config.fit_init)
            return Kronecker(n, m, rank=rank, size=config.size, kernel=config.kernel, init=config.fit_init)

        height, width = (max_out, max_in) if config.transform == "slice" else (config.size, config.size)
        rows = Kronecker.shared_rank(rank, config.kernel) if config.transform == "kronecker" else rank
        store = Store(rows, dict.fromkeys(names, width), dict.fromkeys(names, height))
        return store, nn.ModuleDict({slot.key: fit(slot) for slot in self.slots})

    def _unscaled(self, slot: Slot) -> dict[str, Factors]:
        parts = {}
        if self.local.A:
            parts["local"] = self.local.pair(slot.key, slot.key)
        if self.intra.A:
            parts["intra"] = self.intra_fit[slot.key](self.intra.pair(str(slot.layer), str(slot.layer)))
        if self.inter.A:
            parts["inter"] = self.inter_fit[slot.key](self.inter.pair(SHARED, SHARED))
        return parts

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        return {level: Factors(A, B * self.scale) for level, (A, B) in self._unscaled(slot).items()}

    def reset_parameters(self) -> None:
        for store in (self.local, self.intra, self.inter):
            store.reset_parameters()
        for fit in (*self.intra_fit.values(), *self.inter_fit.values()):
            assert isinstance(fit, Transform)
            fit.reset_parameters()

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        stores = {"local": self.local, "intra": self.intra, "inter": self.inter}
        groups = {f"{level}.A": list(store.A.values()) for level, store in stores.items()}
        groups |= {f"{level}.B": list(store.B.values()) for level, store in stores.items()}
        for level, fits in {"intra": self.intra_fit, "inter": self.inter_fit}.items():
            groups[f"{level}.{TRANSFORMS[self.config.transform].role}"] = list(fits.parameters())
        return {name: parameters for name, parameters in sorted(groups.items()) if parameters}
