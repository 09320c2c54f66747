"""Bi-Share LoRA: an update of three levels, local to a weight, shared in a layer (intra) and by all layers (inter).

Zhou et al., "Bi-Share LoRA", ICML 2025:  delta W = s (B_loc A_loc + T(B_intra, A_intra) + T(B_inter, A_inter))

T fits a shared pair to the weight: Slice Sharing, Gate Transformation or Kronecker Extension (``transforms.py``). The
levels are stacked along the rank, so the update costs a single pair of matrix products.

With ``merging``, layers share the local A of a kind and the intra A. Bs over a shared A can be compared, and training
(``callbacks.AdaptiveMerging``) decides how many local and intra Bs the layers come to share.

Shapes: A [r_local + r_intra + r_inter, in], B [out, the same] (gate: r_local + 1 + 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

from torch import nn
from typing_extensions import override

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.factors import Factors, Slot
from bishare.adapters.mergeable_groups import MergeableGroup
from bishare.adapters.store import SHARED, Store, by_kind, kind_name
from bishare.adapters.transforms import FitInit, Gate, KernelForm, Kronecker, Position, Slice, Transform
from bishare.errors import UserError
from bishare.ops.assembly import Block, Blocks

TRANSFORMS: dict[str, type[Transform]] = {"slice": Slice, "gate": Gate, "kronecker": Kronecker}


@dataclass(kw_only=True)
class BiShareConfig(AdapterConfig):
    """Bi-Share LoRA: local, intra-layer and inter-layer updates."""

    method: ClassVar[str] = "bishare"

    transform: Literal["slice", "gate", "kronecker"] = "kronecker"
    """How a shared pair is fitted to weights of different shapes."""
    r_local: int = 2
    """Rank of each weight's own pair; 0 turns the level off."""
    r_intra: int = 4
    """Rank of the pair shared by the weights of a layer; 0 turns the level off."""
    r_inter: int = 16
    """Rank of the pair shared by all layers; 0 turns the level off."""
    position: Position = "center"
    """Slice: where in the shared pair a smaller weight's window lies."""
    size: int | None = None
    """Gate and kronecker: width and height of the shared pair; if left out, the paper's 1024 and 256."""
    kernel: KernelForm = "shared"
    """Kronecker: form of the kernels, (rows of the shared part)_(rows of the kernel); ``shared`` is ``r_1``."""
    fit_init: FitInit = "kaiming_uniform"
    """Gate and kronecker: initial values of gates and kernels."""
    merging: bool = False
    """Let layers with similar Bs share a B: all layers read the same local A per kind and the same intra A (gate: the
    local A only, since a gated pair acts through a scalar per weight). ``callbacks.AdaptiveMerging`` merges."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranks = {"r_local": self.r_local, "r_intra": self.r_intra, "r_inter": self.r_inter}
        for name, rank in ranks.items():
            if rank < 0:
                raise UserError(f"{name} is {rank}; a rank must be 0 (off) or positive.")
        if not any(ranks.values()):
            raise UserError("r_local, r_intra and r_inter are all 0; at least one must be positive.")
        if self.size is not None and self.size < 1:
            raise UserError(f"size is {self.size}; the shared pair needs at least size 1.")
        if self.merging and not (self.r_local or self._intra_merges):
            level = "r_local" if self.transform == "gate" else "r_local or r_intra"
            raise UserError(f"merging is on, but there is nothing to merge; give {level} a positive rank.")

    @property
    def _intra_merges(self) -> bool:
        return self.merging and self.r_intra > 0 and self.transform != "gate"

    @property
    def mergeable(self) -> bool:
        return self.merging

    @property
    def shared_size(self) -> int:
        """Width and height of a shared pair, for gate and kronecker."""
        return self.size or (1024 if self.transform == "gate" else 256)

    @property
    def rank(self) -> int:
        """Rows of every assembled A: an upper bound of the update's rank."""
        return self.r_local + self._assembled_rank(self.r_intra) + self._assembled_rank(self.r_inter)

    def _assembled_rank(self, rank: int) -> int:
        """Rows of the assembled A that come from a shared level of this rank."""
        if self.transform == "gate":
            return min(rank, 1)  # a scalar stands between the gates
        if self.transform == "kronecker" and self.kernel in ("r_2", "2_r"):
            return 2 * rank
        return rank

    @classmethod
    @override
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        return {transform: {"transform": transform} for transform in TRANSFORMS}

    def build(self, slots: Sequence[Slot]) -> "BiShare":
        return BiShare(self, slots)


class _Level(NamedTuple):
    """The pair of a slot at a level, and the transform that fits a shared pair."""

    name: str
    pair: Factors  # as stored
    fit: Transform | None  # None for a local pair


class BiShare(Adapter):
    """The parameters of Bi-Share LoRA: stores of pairs, and a transform per weight and shared level."""

    is_stored: ClassVar[bool] = True
    config: BiShareConfig

    def __init__(self, config: BiShareConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        widths, heights = {}, {}
        if config.r_local:
            widths = {self._local_a(slot): slot.in_features for slot in slots}
            heights = {slot.key: slot.out_features for slot in slots}
        self.local = Store(config.r_local, widths, heights)
        indices = {slot.layer for slot in slots}
        layers = [str(layer) for layer in sorted(indices)]
        intra_As = [SHARED] if config._intra_merges else layers
        self.intra, self.intra_fit = self._shared_level(config.r_intra, As=intra_As, Bs=layers)
        self.inter, self.inter_fit = self._shared_level(config.r_inter, As=[SHARED], Bs=[SHARED])
        if config.merging:
            self._add_groups()
        self.scale = config.scale_for(config.rank)
        self.reset_parameters()

    def _local_a(self, slot: Slot) -> str:
        # Bs can be compared over the same A only.
        return kind_name(slot) if self.config.merging else slot.key

    def _intra_a(self, slot: Slot) -> str:
        return SHARED if self.config._intra_merges else str(slot.layer)

    def _add_groups(self) -> None:
        """Register the mergeable groups: the local Bs of each kind, and the intra Bs."""
        kinds = by_kind(self.slots)  # refuses layers of different shapes, without a local level too
        if self.config.r_local:
            for kind, slots in kinds.items():
                self._add_local_group(kind, slots)
        if self.config._intra_merges:
            self._add_intra_group()

    def _add_local_group(self, kind: str, slots: Sequence[Slot]) -> None:
        self.add_group(
            MergeableGroup(
                f"local.{kind}",
                layers=[slot.layer for slot in slots],
                names=[slot.key for slot in slots],
                B=self.local.B,
                A=self.local.A,
                a=kind,
                shape=(slots[0].out_features, self.config.r_local),
            )
        )

    def _add_intra_group(self) -> None:
        # Kronecker kernels scale a B, so the group compares Bs together with the kernels of their layer.
        kernels: dict[int, list[Kronecker]] = {slot.layer: [] for slot in self.slots}
        for slot in self.slots:
            fit = self.intra_fit[slot.key]
            if isinstance(fit, Kronecker):
                kernels[slot.layer].append(fit)
        layers = sorted(kernels)
        self.add_group(
            MergeableGroup(
                "intra",
                layers=layers,
                names=[str(layer) for layer in layers],
                B=self.intra.B,
                A=self.intra.A,
                a=SHARED,
                shape=(self._shared_shape()[0], self.intra.rank),
                fits=[kernels[layer] for layer in layers] if self.config.transform == "kronecker" else (),
            )
        )

    def _shared_shape(self) -> tuple[int, int]:
        """Height of every shared B, width of every shared A."""
        if self.config.transform == "slice":
            return max(slot.out_features for slot in self.slots), max(slot.in_features for slot in self.slots)
        return self.config.shared_size, self.config.shared_size

    def _shared_level(self, rank: int, *, As: Sequence[str], Bs: Sequence[str]) -> tuple[Store, nn.ModuleDict]:
        """A store with these As and Bs, and the transform of every weight; both empty at rank 0."""
        config = self.config
        if rank == 0:
            return Store(0, {}, {}), nn.ModuleDict()
        num_rows = rank
        # Some forms of the kernel hold the ranks instead of the shared pair.
        if config.transform == "kronecker":
            num_rows = Kronecker.shared_rank(rank, config.kernel)
        height, width = self._shared_shape()
        store = Store(num_rows, dict.fromkeys(As, width), dict.fromkeys(Bs, height))
        fits = nn.ModuleDict()
        for slot in self.slots:
            n, m = slot.in_features, slot.out_features
            if config.transform == "slice":
                fits[slot.key] = Slice(n, m, width, height, config.position)
            elif config.transform == "gate":
                fits[slot.key] = Gate(n, m, config.shared_size, config.fit_init)
            else:
                fits[slot.key] = Kronecker(
                    n, m, rank=rank, size=config.shared_size, kernel=config.kernel, init=config.fit_init
                )
        return store, fits

    def _levels(self, slot: Slot) -> list[_Level]:
        """The levels of a slot whose rank is not 0."""
        levels: list[_Level] = []
        if self.local.A:
            b = self.b_name(f"local.{kind_name(slot)}", slot.key)
            levels.append(_Level("local", self.local.pair(self._local_a(slot), b), None))
        if self.intra.A:
            pair = self.intra.pair(self._intra_a(slot), self.b_name("intra", str(slot.layer)))
            levels.append(_Level("intra", pair, cast(Transform, self.intra_fit[slot.key])))
        if self.inter.A:
            levels.append(_Level("inter", self.inter.pair(SHARED, SHARED), cast(Transform, self.inter_fit[slot.key])))
        return levels

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        parts: dict[str, Factors] = {}
        for name, pair, fit in self._levels(slot):
            if fit is not None:
                # forward itself: under ZeRO-3 a module's call runs hooks in which all ranks must take part, and a
                # monitor may ask for the factors on a single rank.
                pair = fit.forward(pair)
            parts[name] = Factors(pair.A, pair.B * self.scale)
        return parts

    def blocks(self, slot: Slot) -> Blocks:
        As: list[Block] = []
        Bs: list[Block] = []
        for _, pair, fit in self._levels(slot):
            A, B = (Block(pair.A), Block(pair.B)) if fit is None else fit.blocks(pair)
            As.append(A)
            Bs.append(B)
        return Blocks(As, Bs, self.scale)

    def reset_parameters(self) -> None:
        for store in (self.local, self.intra, self.inter):
            store.reset_parameters()
        for fit in (*self.intra_fit.values(), *self.inter_fit.values()):
            assert isinstance(fit, Transform)
            fit.reset_parameters()
        for group in self.mergeable_groups().values():
            group.reset()

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for level, store in {"local": self.local, "intra": self.intra, "inter": self.inter}.items():
            groups[f"{level}.A"] = list(store.A.values())
            groups[f"{level}.B"] = list(store.B.values())
        for level, fits in {"intra": self.intra_fit, "inter": self.inter_fit}.items():
            groups[f"{level}.{TRANSFORMS[self.config.transform].role}"] = list(fits.parameters())
        return {name: parameters for name, parameters in sorted(groups.items()) if parameters}
