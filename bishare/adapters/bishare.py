"""Bi-Share LoRA: an update of three parts - a weight's own, one shared in its layer, one shared by all layers.

Zhou et al., "Bi-Share LoRA", ICML 2025:  delta W = s (B_loc A_loc + T(B_intra, A_intra) + T(B_inter, A_inter))

T fits a shared pair to the weight: Slice Sharing, Gate Transformation or Kronecker Extension (transforms.py).
The three parts are stacked along the rank, so the update costs one pair of matrix products.

With ``merging`` the layers share their As: the local A of a kind and the intra A. Their Bs can then be compared, and
training (``callbacks.AdaptiveMerging``) decides how far local and intra become shared by all layers.

Shapes: A [r_local + r_intra + r_inter, in], B [out, the same] (gate: r_local + 1 + 1).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

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
    """Rank of each weight's own pair; 0 turns it off."""
    r_intra: int = 4
    """Rank of the pair shared by the weights of one layer; 0 turns it off."""
    r_inter: int = 16
    """Rank of the pair shared by all layers; 0 turns it off."""
    position: Position = "center"
    """Slice: where in the shared pair a smaller weight's window lies."""
    size: int | None = None
    """Gate and kronecker: width and height of the shared pair; if left out, the paper's 1024 and 256."""
    kernel: KernelForm = "shared"
    """Kronecker: form of the kernels, (rows of the shared part)_(rows of the kernel); ``shared`` is ``r_1``."""
    fit_init: FitInit = "kaiming_uniform"
    """Gate and kronecker: initial values of gates and kernels."""
    merging: bool = False
    """Let layers that grow alike share a B: the layers read one local A per kind and one intra A (gate: the local A
    only, because its shared pair acts through a scalar per weight). Needs ``callbacks.AdaptiveMerging`` to merge."""

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

        def level(rank: int) -> int:
            if self.transform == "gate":
                return min(rank, 1)
            return 2 * rank if self.transform == "kronecker" and self.kernel in ("r_2", "2_r") else rank

        return self.r_local + level(self.r_intra) + level(self.r_inter)

    @classmethod
    @override
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        return {transform: {"transform": transform} for transform in TRANSFORMS}

    def build(self, slots: Sequence[Slot]) -> "BiShare":
        return BiShare(self, slots)


class BiShare(Adapter):
    """The parameters of Bi-Share LoRA: stores of pairs, and a transform per weight and shared level."""

    is_stored: ClassVar[bool] = True
    config: BiShareConfig

    def __init__(self, config: BiShareConfig, slots: Sequence[Slot]) -> None:
        super().__init__(config, slots)
        self.local = Store(
            config.r_local,
            {self._local_a(slot): slot.in_features for slot in slots} if config.r_local else {},
            {slot.key: slot.out_features for slot in slots} if config.r_local else {},
        )
        layers = [str(layer) for layer in sorted({slot.layer for slot in slots})]
        self.intra, self.intra_fit = self._shared_level(config.r_intra, layers, one_A=config._intra_merges)
        self.inter, self.inter_fit = self._shared_level(config.r_inter, [SHARED])
        if config.merging:
            self._add_groups()
        self.scale = config.scale_for(config.rank)
        self.reset_parameters()

    def _local_a(self, slot: Slot) -> str:
        return kind_name(slot) if self.config.merging else slot.key

    def _intra_a(self, slot: Slot) -> str:
        return SHARED if self.config._intra_merges else str(slot.layer)

    def _add_groups(self) -> None:
        """The mergeable groups: the local Bs of each kind, and the intra Bs."""
        kinds = by_kind(self.slots)
        for kind, slots in kinds.items() if self.config.r_local else ():
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
        if not self.config._intra_merges:
            return
        fits: dict[int, list[Kronecker]] = {}
        for slot in self.slots:
            fit = self.intra_fit[slot.key]
            fits.setdefault(slot.layer, []).extend([fit] if isinstance(fit, Kronecker) else [])
        layers = sorted(fits)
        self.add_group(
            MergeableGroup(
                "intra",
                layers=layers,
                names=[str(layer) for layer in layers],
                B=self.intra.B,
                A=self.intra.A,
                a=SHARED,
                shape=(self._shared_size()[0], self.intra.rank),
                fits=[fits[layer] for layer in layers] if self.config.transform == "kronecker" else (),
            )
        )

    def _shared_size(self) -> tuple[int, int]:
        """Height of every shared B, width of every shared A."""
        if self.config.transform == "slice":
            return max(slot.out_features for slot in self.slots), max(slot.in_features for slot in self.slots)
        return self.config.shared_size, self.config.shared_size

    def _shared_level(self, rank: int, names: Sequence[str], one_A: bool = False) -> tuple[Store, nn.ModuleDict]:
        """A store with one pair per name (or one A for all), and every weight's transform; both empty at rank 0."""
        config = self.config
        if rank == 0:
            return Store(0, {}, {}), nn.ModuleDict()
        max_out, max_in = self._shared_size()

        def fit(slot: Slot) -> Transform:
            n, m = slot.in_features, slot.out_features
            if config.transform == "slice":
                return Slice(n, m, max_in, max_out, config.position)
            if config.transform == "gate":
                return Gate(n, m, config.shared_size, config.fit_init)
            return Kronecker(n, m, rank=rank, size=config.shared_size, kernel=config.kernel, init=config.fit_init)

        height, width = self._shared_size()
        rows = Kronecker.shared_rank(rank, config.kernel) if config.transform == "kronecker" else rank
        store = Store(rows, dict.fromkeys([SHARED] if one_A else names, width), dict.fromkeys(names, height))
        return store, nn.ModuleDict({slot.key: fit(slot) for slot in self.slots})

    def _stored(self, slot: Slot) -> Iterator[tuple[str, Factors, Transform | None]]:
        """The levels of a slot: name, stored pair, and the transform that fits a shared pair."""
        if self.local.A:
            b = self.b_name(f"local.{kind_name(slot)}", slot.key)
            yield "local", self.local.pair(self._local_a(slot), b), None
        if self.intra.A:
            shared = self.intra.pair(self._intra_a(slot), self.b_name("intra", str(slot.layer)))
            yield "intra", shared, cast(Transform, self.intra_fit[slot.key])
        if self.inter.A:
            yield "inter", self.inter.pair(SHARED, SHARED), cast(Transform, self.inter_fit[slot.key])

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        # forward itself: under ZeRO-3 a module's call runs hooks in which all ranks must take part, and a monitor may
        # ask for the factors on one rank alone.
        fitted = {level: pair if fit is None else fit.forward(pair) for level, pair, fit in self._stored(slot)}
        return {level: Factors(A, B * self.scale) for level, (A, B) in fitted.items()}

    def blocks(self, slot: Slot) -> Blocks:
        pairs = [
            (Block(pair.A), Block(pair.B)) if fit is None else fit.blocks(pair) for _, pair, fit in self._stored(slot)
        ]
        return Blocks([A for A, _ in pairs], [B for _, B in pairs], self.scale)

    def reset_parameters(self) -> None:
        for store in (self.local, self.intra, self.inter):
            store.reset_parameters()
        for fit in (*self.intra_fit.values(), *self.inter_fit.values()):
            assert isinstance(fit, Transform)
            fit.reset_parameters()
        for group in self.mergeable_groups().values():
            group.reset()

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        stores = {"local": self.local, "intra": self.intra, "inter": self.inter}
        groups = {f"{level}.A": list(store.A.values()) for level, store in stores.items()}
        groups |= {f"{level}.B": list(store.B.values()) for level, store in stores.items()}
        for level, fits in {"intra": self.intra_fit, "inter": self.inter_fit}.items():
            groups[f"{level}.{TRANSFORMS[self.config.transform].role}"] = list(fits.parameters())
        return {name: parameters for name, parameters in sorted(groups.items()) if parameters}
