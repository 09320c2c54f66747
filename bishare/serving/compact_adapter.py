"""Adapters in memory: the live values of an adapter in a flat buffer, shared values once.

Adapters of the same configuration have the same layout: a single object of the method's class, whose parameters are
views of a buffer. For assembly, the parameters become views of the values of several adapters, with a leading dimension
m: the factors of a weight are then computed for all m adapters at once.

Shapes: n values of a layout, dead values included; buffer [n], values of m adapters [m, n].
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

AssemblyKey = tuple["Layout", Hashable]
"""A layout and owner maps; adapters with equal keys are assembled together."""


def compact_bytes(file: AdapterFile) -> int:
    """Upper bound of the bytes of a file's adapter in memory, from the shapes alone."""
    total = 0
    for tensor in file.tensors.values():
        total += tensor.numel() * (FP32 if tensor.is_floating_point() else tensor.element_size())
    return total


@dataclass(frozen=True, eq=False)
class CompactAdapter:
    """The values of an adapter."""

    layout: "Layout"
    values: Tensor  # [live values], fp32
    runs: Sequence[tuple[int, int]]
    """Spans (start, stop) of ``values`` in the layout's buffer, in order; dead values are left out."""
    owners: Mapping[str, Tensor]
    """Owner map of each mergeable group: the layer whose B each layer uses."""

    @property
    def assembly_key(self) -> AssemblyKey:
        """The layout and the owner maps."""
        return self.layout, tuple(tuple(owner.tolist()) for owner in self.owners.values())

    def write_to(self, values: Tensor) -> None:
        """Copy the live values into ``values`` [n]; dead values stay as they are."""
        start_of_run = 0
        for start, stop in self.runs:
            end_of_run = start_of_run + stop - start
            values[start:stop].copy_(self.values[start_of_run:end_of_run])
            start_of_run = end_of_run


class Layout:
    """The common part of all adapters of a configuration.

    Args:
        config: The configuration.
        slots: The adapted weights.
        device: Device of the values.
    """

    def __init__(self, config: AdapterConfig, slots: Sequence[Slot], device: torch.device) -> None:
        # Initial values are drawn and never read; the user's random state must not change.
        with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
            self._adapter = config.build(slots).float()
        parameters = list(self._adapter.parameters())
        bounds = list(accumulate(map(torch.numel, parameters), initial=0))
        self._values = torch.empty(bounds[-1], device=device)
        self._spans = dict(zip(map(id, parameters), pairwise(bounds), strict=True))
        # Shapes of a single adapter: those of the parameters change with the views.
        self._shapes = [(parameter, parameter.shape) for parameter in parameters]
        self._set_views(self._values)
        self.num_bytes = self._values.nbytes
        """Bytes of an adapter's values, dead values included."""
        self._lock = threading.Lock()
        self.slots = self._adapter.slots
        self.ranks: dict[str, int] = {}
        """Rows of the assembled A by weight, without weights with vectors around a frozen pair."""
        self.num_scales = 0
        """Values of the vectors around frozen pairs."""
        for slot in self.slots:
            scaled = self._adapter.scaled(slot)
            if scaled is None:
                self.ranks[slot.name] = rank(self._adapter.blocks(slot).A)
            else:
                self.num_scales += len(scaled.d) + len(scaled.b)

    @torch.no_grad()
    def read(self, file: AdapterFile, *, where: str) -> CompactAdapter:
        """The adapter of a file with this configuration.

        Raises:
            UserError: A tensor is missing, unknown or of another shape; ``where`` names the file.
        """
        with self._lock:
            load_tensors(self._adapter, file.tensors, where=where)
            runs: list[tuple[int, int]] = []
            for parameter in self._adapter.live_parameters().values():
                start, stop = self._spans[id(parameter)]
                # Neighbours in the buffer are copied together.
                if runs and runs[-1][1] == start:
                    runs[-1] = runs[-1][0], stop
                else:
                    runs.append((start, stop))
            owners = {name: group.owner.clone() for name, group in self._adapter.mergeable_groups().items()}
            values = torch.cat([self._values[start:stop] for start, stop in runs])
            return CompactAdapter(self, values, tuple(runs), owners)

    def empty(self, num_adapters: int) -> Tensor:
        """Uninitialised values [m, n] of several adapters, for :meth:`views_of`."""
        return torch.empty(num_adapters, len(self._values), device=self._values.device)

    @contextmanager
    def views_of(self, values: Tensor, owners: Mapping[str, Tensor]) -> Iterator[Adapter]:
        """Several adapters at once, for this thread alone until the context ends.

        Args:
            values: Values [m, n] of the adapters, from :meth:`CompactAdapter.write_to`.
            owners: Owner maps, equal for all m adapters.

        Yields:
            The adapter; its parameters, blocks and scales have a leading dimension m.
        """
        with self._lock, torch.no_grad():
            for name, group in self._adapter.mergeable_groups().items():
                group.owner.copy_(owners[name])
                group.refresh()
            self._set_views(values)
            try:
                yield self._adapter
            finally:
                self._set_views(self._values)

    def _set_views(self, values: Tensor) -> None:
        """Make the parameters views of ``values`` [..., n]."""
        for parameter, shape in self._shapes:
            start, stop = self._spans[id(parameter)]
            parameter.data = values[..., start:stop].view(*values.shape[:-1], *shape)
