"""The contract of every adapter: a low-rank pair (A, B) for each adapted weight, assembled from stored parameters.

    y = x Wᵀ + (x Aᵀ) Bᵀ        the scale already inside B

Forward, merging, export, counts and analyses are each written once, on ``(A, B)``. A method is a class with its stored
parameters and the assembly of the pair.

Shapes: x [..., in], W [out, in], A [r, in], B [out, r].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jsonargparse import set_parsing_settings
from torch import Tensor, nn

from bishare.adapters.factors import Factors, Scaled, Slot, stack
from bishare.adapters.mergeable_groups import MergeableGroup
from bishare.errors import UserError
from bishare.ops.assembly import Block, Blocks


@dataclass(kw_only=True)
class AdapterConfig(ABC):
    """Options of all methods: the weights to adapt, the scale of the update, and dropout."""

    method: ClassVar[str]

    targets: list[str] = field(default_factory=lambda: ["q", "k", "v", "up", "down"])
    """Weights to adapt: kinds (q, k, v, o, gate, up, down), ends of module names (``q_proj``, ``mlp.c_fc``) or,
    written ``re:...``, regular expressions for the whole module name."""
    layers: list[int] | None = None
    """Indices of the layers to adapt; all of them by default."""
    scaling: Literal["fixed", "alpha/r", "rslora"] = "fixed"
    """``fixed`` multiplies the update by ``scale``, ``alpha/r`` by alpha / r and ``rslora`` by alpha / sqrt(r),
    where r is the number of rows of the assembled A."""
    scale: float = 2.0
    """Factor of the update with ``scaling: fixed`` (2 in the code published with Bi-Share LoRA)."""
    alpha: float = 16.0
    """Numerator of the scale with ``scaling: alpha/r`` and ``rslora``."""
    dropout: float = 0.0
    """Probability of dropping an input feature of the update while training."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # A checkpoint written from Python holds the configuration itself; torch.load reads only listed classes.
        torch.serialization.add_safe_globals([cls])

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1.")
        if not self.targets:
            raise UserError("targets is an empty list; leave it out for q, k, v, up, down.")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise UserError(f"layers is {self.layers}; give the indices to adapt, from 0, or leave it out for all.")

    @property
    def mergeable(self) -> bool:
        """Whether layers may merge, so that they share a B, while training."""
        return False

    @classmethod
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        """The forms of the method that comparisons show: options by label; by default all options as they are."""
        return {cls.__name__.removesuffix("Config"): {}}

    @abstractmethod
    def build(self, slots: Sequence[Slot]) -> "Adapter":
        """Build the method's adapter for these slots, with initialised parameters on the current default device."""

    def scale_for(self, rank: int) -> float:
        """The factor of an update whose assembled A has ``rank`` rows."""
        if self.scaling == "fixed":
            return self.scale
        if self.scaling == "alpha/r":
            return self.alpha / rank
        return self.alpha / math.sqrt(rank)


# Lets a YAML name a method by its config class. The call stands where the class is defined, so that checkpoints load
# from Python too. Attribute docstrings are the help of the command line.
set_parsing_settings(subclasses_enabled=[AdapterConfig], docstring_parse_attribute_docstrings=True)


class Adapter(nn.Module, ABC):
    """The parameters of a method for a base model, and the assembly of each slot's factors.

    Args:
        config: The method's options.
        slots: The weights to adapt, in the order of the model's module tree.
    """

    starts_as_noop: ClassVar[bool] = True
    """Whether a fresh adapter leaves every output of the base model bitwise unchanged."""
    is_stored: ClassVar[bool] = False
    """Whether the matrices in the blocks are parameters. The factors of all layers are then assembled together;
    matrices computed for each block would all exist at once."""

    def __init__(self, config: AdapterConfig, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.config = config
        self.slots = tuple(slots)
        self.merged = False
        self.originals: dict[str, Tensor] = {}  # [out, in] by slot key, while merged
        self.trainable_before: list[str] = []  # names of the base's trainable parameters before ``attach``
        self.attention: str | None = None  # the base's attention before ``attach``, if changed
        self.mergeable = nn.ModuleDict()
        if len({slot.key for slot in slots}) != len(slots):
            raise UserError("Two adapted weights of one layer have the same kind; name them by their module paths.")

    @abstractmethod
    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        """The slot's update as a sum of levels (``local``, ``intra``, ``inter``), with the scale inside each B.

        Returns:
            Factors by level, in a fixed order; A ``[r_level, in]``, B ``[out, r_level]``.
        """

    def factors(self, slot: Slot) -> Factors:
        """The slot's whole update: all levels stacked along the rank."""
        return stack(list(self.parts(slot).values()))

    def blocks(self, slot: Slot) -> Blocks:
        """The same update as stored blocks, assembled by the forward pass in a single autograd node.

        A method overrides this where factors are stored matrices, windows of stored matrices or Kronecker products.
        """
        As: list[Block] = []
        Bs: list[Block] = []
        for A, B in self.parts(slot).values():
            As.append(Block(A))
            Bs.append(Block(B))
        return Blocks(As, Bs, 1.0)

    def scaled(self, slot: Slot) -> Scaled | None:
        """The same update as vectors around a frozen pair, where all adapters of the method share the pair, else None.

        A batch of many adapters multiplies by the shared pair once, whatever the rank.
        """
        return None

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the initial values from torch's default generator, each parameter exactly once."""

    @abstractmethod
    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        """Every trainable parameter, under a fixed name, e.g. ``local.A`` or ``intra.kernel``.

        The part after the dot is the role (``A``, ``B``, ``kernel``, ``gate``, ...), the key of the optimizer's
        learning-rate factors.
        """

    # --- merging -----------------------------------------------------------------------------------------------

    def add_group(self, group: MergeableGroup) -> None:
        """Register a group whose layers may merge."""
        self.mergeable[group.name.replace(".", "-")] = group

    def mergeable_groups(self) -> dict[str, MergeableGroup]:
        """The groups whose layers may merge, by name, in a fixed order; empty for most methods."""
        groups: dict[str, MergeableGroup] = {}
        for group in self.mergeable.values():
            assert isinstance(group, MergeableGroup)
            groups[group.name] = group
        return groups

    def b_name(self, group: str, name: str) -> str:
        """Name of the B used by ``name`` in this group: the owner's B, or ``name`` itself without a group."""
        key = group.replace(".", "-")
        if key not in self.mergeable:
            return name
        found = self.mergeable[key]
        assert isinstance(found, MergeableGroup)
        return found.uses(name)

    def refresh(self) -> None:
        """Update attributes that mirror buffers, after buffers were written without ``load_state_dict``."""
        for group in self.mergeable_groups().values():
            group.refresh()

    # --- what is trained and kept ------------------------------------------------------------------------------

    def dead_parameters(self) -> list[nn.Parameter]:
        """The parameters that no slot's factors read any more, in a fixed order."""
        dead: list[nn.Parameter] = []
        for group in self.mergeable_groups().values():
            dead += group.dead_parameters()
        return dead

    def zero_of_dead(self) -> Tensor | float:
        """Zero, to be added to the loss, so that every dead parameter has a gradient of zeros.

        Without a gradient DDP waits for the parameter, and ZeRO keeps the last gradient and counts the old values in
        the global norm. The sum is over no elements: momentum still moves the dead values, but no value reaches the
        loss.
        """
        return sum(p[:0].sum() for p in self.dead_parameters())

    def live_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters that some slot's factors read, by name; all remaining parameters are dead."""
        dead = {id(p) for p in self.dead_parameters()}
        return {name: p for name, p in self.named_parameters() if p.requires_grad and id(p) not in dead}

    def file_buffers(self) -> dict[str, Tensor]:
        """The buffers read by the factors, by name; running means and their counts serve training only."""
        training = {id(b) for b in self.training_buffers()}
        return {name: b for name, b in self.named_buffers() if id(b) not in training}

    def training_buffers(self) -> list[Tensor]:
        """The running means of the mergeable groups and the counts of their steps."""
        buffers: list[Tensor] = []
        for group in self.mergeable_groups().values():
            buffers += [group.mean, group.num_steps]
        return buffers

    def num_parameters(self) -> int:
        """Number of live trainable values."""
        return sum(p.numel() for p in self.live_parameters().values())
