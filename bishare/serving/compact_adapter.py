"""An adapter as it is stored: its live values in one flat buffer, what its layers share held once.

Adapters of one configuration have one layout: one object of the method's class, whose parameters are views of one
buffer. While factors are assembled they are views of several adapters' values instead, with a leading dimension, so
that a weight's factors are computed for all of them in one go.
"""

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.checkpoint import AdapterFile, load_tensors
from bishare.adapters.factors import Slot
from bishare.ops.assembly import rank

FP32 = 4


def compact_bytes(file: AdapterFile) -> int:
    """Bytes that the adapter of this file takes at most, from the shapes alone."""
    tensors = file.tensors.values()
    return sum(t.numel() * (FP32 if t.is_floating_point() else t.element_size()) for t in tensors)


@dataclass(frozen=True, eq=False)
class Compact:
    """The values of one adapter."""

    layout: "Layout"
    values: Tensor  # [live values], fp32
    runs: Sequence[tuple[int, int]]
    """Where ``values`` belong in the layout's buffer: (start, stop) one after the other; dead values are left out."""
    owners: Mapping[str, Tensor]
    """Which layers share a B: the owner map of each mergeable group."""

    @property
    def form(self) -> tuple["Layout", Hashable]:
        """What adapters that are assembled together have in common: the layout, and which layers share a B."""
        return self.layout, tuple(tuple(owner.tolist()) for owner in self.owners.values())

    def write_to(self, values: Tensor) -> None:
        """Put the values where they belong in ``values`` [all values of the layout]; dead ones are left as they are."""
        lengths = [stop - start for start, stop in self.runs]
        for (start, stop), live in zip(self.runs, torch.split(self.values, lengths), strict=True):
            values[start:stop].copy_(live)


class Layout:
    """What all adapters of one configuration have in common.

    Args:
        config: The configuration.
        slots: The weights they adapt.
        device: Where their values are held.
    """

    def __init__(self, config: AdapterConfig, slots: Sequence[Slot], device: torch.device) -> None:
        # Initial values are drawn and never read; what else is random must not notice.
        with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
            self._adapter = config.build(slots).float()
        parameters = list(self._adapter.parameters())
        bounds = list(accumulate((p.numel() for p in parameters), initial=0))
        self._values = torch.empty(bounds[-1], device=device)
        self._places = {id(p): place for p, place in zip(parameters, pairwise(bounds), strict=True)}
        self._shapes = [(p, self._places[id(p)], p.shape) for p in parameters]
        self._look_at(self._values)
        self.num_bytes = self._values.nbytes
        """Bytes of one adapter's values, dead ones included."""
        self._lock = threading.Lock()
        self.slots = self._adapter.slots
        scaled = {slot.name: self._adapter.scaled(slot) for slot in self.slots}
        self.ranks = {s.name: rank(self._adapter.blocks(s).A) for s in self.slots if scaled[s.name] is None}
        """Rows of the assembled A, by weight; without those whose update is vectors around a frozen pair."""
        self.num_scales = sum(len(s.d) + len(s.b) for s in scaled.values() if s is not None)
        """Values of those vectors."""

    @torch.no_grad()
    def read(self, file: AdapterFile, *, where: str) -> Compact:
        """The adapter of a file of this configuration.

        Raises:
            UserError: A tensor is missing, unknown or of another shape; ``where`` names the file.
        """
        with self._lock:
            load_tensors(self._adapter, file.tensors, where=where)
            runs: list[tuple[int, int]] = []
            for p in self._adapter.live_parameters().values():
                start, stop = self._places[id(p)]
                if runs and runs[-1][1] == start:
                    runs[-1] = runs[-1][0], stop
                else:
                    runs.append((start, stop))
            owners = {name: group.owner.clone() for name, group in self._adapter.mergeable_groups().items()}
            return Compact(self, torch.cat([self._values[start:stop] for start, stop in runs]), tuple(runs), owners)

    def empty(self, num_adapters: int) -> Tensor:
        """Room for the values of several adapters [m, values], for :meth:`holding`."""
        return torch.empty(num_adapters, len(self._values), device=self._values.device)

    @contextmanager
    def holding(self, values: Tensor, owners: Mapping[str, Tensor]) -> Iterator[Adapter]:
        """Several adapters at once, for this thread alone while the context lasts.

        Args:
            values: Their values [m, values], see :meth:`Compact.write_to`.
            owners: Their owner maps, which are the same for all.

        Yields:
            The adapter; its parameters, blocks and scales have a leading dimension m.
        """
        with self._lock, torch.no_grad():
            for name, group in self._adapter.mergeable_groups().items():
                group.owner.copy_(owners[name])
                group.refresh()
            self._look_at(values)
            try:
                yield self._adapter
            finally:
                self._look_at(self._values)

    def _look_at(self, values: Tensor) -> None:
        """Make the parameters views of ``values`` [..., values]."""
        for p, (start, stop), shape in self._shapes:
            p.data = values[..., start:stop].view(*values.shape[:-1], *shape)
