"""Counts the adapters of a base that fit into a budget of memory, holds some of them, and times load and switch."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.checkpoint import read_adapter, save_adapter
from bishare.adapters.counts import num_bytes, num_lora_values
from bishare.adapters.factors import Slot
from bishare.adapters.registry import config_classes
from bishare.commands.capacity.process_memory import free_bytes, resident_bytes, return_freed_memory
from bishare.commands.config.settings import Settings
from bishare.errors import UserError
from bishare.models.architectures import build_adapter, build_on_meta, find_architecture
from bishare.models.dtypes import base_type
from bishare.models.export import vllm_rank
from bishare.models.targets import find_slots
from bishare.serving.batch_factors import BatchFactors, stack_shapes
from bishare.serving.compact_adapter import FP32, CompactAdapter, Layout

COUNTS = (100, 250, 500, 750, 1000, 1250, 1500)
"""Numbers of adapters in the table and the plot, up to the end of the paper's figure."""

MOST_HELD = 6_000_000_000
"""The most bytes of adapters to hold for a measurement; half of the free memory is the second bound."""

REPEATS = 5
"""Calls of each timed function."""

MIB = 2**20

LLAMA_7B = 6_738_415_616
"""Values of the base of the published figure."""

PUBLISHED_BASE = 12_914.15 * MIB
"""Bytes of the base in the published figure."""

PUBLISHED = {"LoRA r=8": (53.5 * MIB, 1207), "Bi-Share": (17.4375 * MIB, 3878)}
"""Bytes of an adapter in the published figure, and the published number of adapters that fit. The two numbers belong
to different budgets: the least budget that gives the number is taken."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Bytes and times of a method's adapters on a base."""

    method: str
    num_values: int
    own: int
    """Bytes of an adapter in its own form, in fp32."""
    once: int
    """Bytes in common to all adapters of the method: VeRA's random pair."""
    rank: int
    """Rank of the export."""
    slot_rank: int | None
    """The least rank of a vLLM slot for the export; None for an export beyond vLLM's ranks."""
    slot: int | None
    """Bytes of the export in the slot, in the type of the base."""
    held: Mapping[int, int]
    """By number of adapters, the measured growth of the process in bytes."""
    load_ms: float
    """Milliseconds from the file, in the system's cache, to the own form in memory."""
    switch_ms: float
    """Milliseconds from the own form to the factors of a batch."""

    def memory(self, count: int) -> int:
        """Bytes of ``count`` adapters, without the base."""
        return self.once + count * self.own


@dataclass(frozen=True, kw_only=True)
class Report:
    """The capacity of a budget for every method."""

    base: str
    base_bytes: int
    budgets: Mapping[str, int]
    """Bytes by name: the given budget; for the base of the published figure also the published budgets."""
    methods: Sequence[Capacity]
    published: bool
    """Whether the published figure has the same base."""


def measure(settings: Settings, *, budget: int) -> Report:
    """Measure the adapters of every method on the configuration's base and weights.

    Args:
        settings: The configuration.
        budget: Bytes for base and adapters.

    Raises:
        UserError: The budget is not positive or smaller than the base, or the base's architecture is not found.
    """
    if budget <= 0:
        raise UserError(f"--budget-gb is {budget / 1e9:g}; give the device's memory in 10^9 bytes.")
    config = find_architecture(
        settings.model.base,
        revision=settings.model.revision,
        trust_remote_code=settings.model.trust_remote_code,
        files=settings.files,
        given=settings.architecture,
    )
    model = build_on_meta(config, trust_remote_code=settings.model.trust_remote_code)
    num_base = sum(p.numel() for p in model.parameters())
    value_bytes = 4 if base_type(settings.model.base_dtype, "gpu") == "float32" else 2
    base_bytes = num_base * value_bytes
    if base_bytes >= budget:
        raise UserError(f"the base takes {base_bytes:,} bytes, the budget is {budget:,}; raise --budget-gb.")
    budgets = {f"{budget / 1e9:g} GB": budget}
    if num_base == LLAMA_7B:
        published = [round(PUBLISHED_BASE + each * count) for each, count in PUBLISHED.values()]
        budgets |= {f"{size / 1e9:.2f} GB": size for size in published}
    methods = []
    for name, method in compared(settings.model.adapter).items():
        print(f"measuring {name} ...", file=sys.stderr)
        adapter = build_adapter(model, method)
        methods.append(capacity_of(name, adapter, find_slots(model, method), value_bytes=value_bytes))
    return Report(
        base=settings.model.base,
        base_bytes=base_bytes,
        budgets=budgets,
        methods=methods,
        published=num_base == LLAMA_7B,
    )


def compared(config: AdapterConfig) -> dict[str, AdapterConfig]:
    """The configured adapter and every method with default ranks, on the same weights and without merging."""
    methods: dict[str, AdapterConfig] = {}
    for kind in config_classes().values():
        for label, options in kind.variants().items():
            methods[label] = kind(targets=config.targets, layers=config.layers, **options)
    if _form(config) not in [_form(other) for other in methods.values()]:
        methods = {"configured": config, **methods}
    return methods


def _form(config: AdapterConfig) -> dict[str, Any]:
    """Method and options without dropout, which takes no memory in serving."""
    return {**asdict(config), "dropout": 0, "method": config.method}


def capacity_of(name: str, adapter: Adapter, slots: Sequence[Slot], *, value_bytes: int) -> Capacity:
    """Measure a method.

    Args:
        name: Name in the table.
        adapter: An adapter of the method on the meta device.
        slots: The adapted weights.
        value_bytes: Bytes of a value of the base; exports are served in the same type.
    """
    num_values = adapter.num_parameters()
    owners = [group.owner for group in adapter.mergeable_groups().values()]
    # Buffers of neither training nor file are the same for all adapters.
    kept = {id(b) for b in (*adapter.training_buffers(), *adapter.file_buffers().values())}
    rank = max(adapter.factors(slot).rank for slot in slots)
    slot_rank = vllm_rank(rank)
    layout = Layout(adapter.config, slots, torch.device("cpu"))
    own = FP32 * num_values + num_bytes(owners)
    with tempfile.TemporaryDirectory() as folder:
        fresh = adapter.config.build(slots).float()
        save_adapter(fresh, folder)
        del fresh
        load_ms, compact = timed(lambda: layout.read(read_adapter(folder), where=folder))
    return Capacity(
        method=name,
        num_values=num_values,
        own=own,
        once=num_bytes([b for b in adapter.buffers() if id(b) not in kept]),
        rank=rank,
        slot_rank=slot_rank,
        slot=None if slot_rank is None else value_bytes * num_lora_values(slots, slot_rank),
        held=hold(compact, most=min(MOST_HELD, free_bytes() // 2)),
        load_ms=load_ms,
        switch_ms=timed(lambda: switch(compact, value_bytes))[0],
    )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Median time of several calls in milliseconds, and the last result."""
    times = []
    result = call()  # the first call, which fills caches, is not timed
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), result


@torch.no_grad()
def switch(compact: CompactAdapter, value_bytes: int) -> BatchFactors:
    """Assemble the factors of a batch with this adapter alone."""
    layout = compact.layout
    stacked = {}
    for slot in layout.slots:
        # Weights with a frozen pair have vectors in place of factors.
        if slot.name in layout.ranks:
            stacked[slot.name] = stack_shapes({0: layout.ranks[slot.name]}, 1, slot.in_features, slot.out_features)
    dtype = torch.float32 if value_bytes == FP32 else torch.bfloat16
    factors = BatchFactors(1, stacked, shared=True, dtype=dtype, device=torch.device("cpu"))
    values = layout.empty(1)
    compact.write_to(values[0])
    with layout.views_of(values, compact.owners) as adapter:
        factors.assemble(adapter, [[0]])
    return factors


def hold(compact: CompactAdapter, *, most: int) -> dict[int, int]:
    """Hold more and more copies of an adapter, up to ``most`` bytes.

    Returns:
        By number of copies, the growth of the process in bytes; empty on systems that do not report it.
    """
    each = compact.values.nbytes + num_bytes(list(compact.owners.values()))
    held: list[tuple[Tensor, ...]] = []
    grown: dict[int, int] = {}
    return_freed_memory()  # or copies would fill freed memory, and the process would not grow
    start = resident_bytes()
    for count in COUNTS if start else ():
        if count * each > most:
            break
        while len(held) < count:
            held.append((compact.values.clone(), *(owner.clone() for owner in compact.owners.values())))
        grown[count] = resident_bytes() - start
    return grown


def fitting(budget: int, base: int, each: int, once: int = 0) -> int:
    """The number of adapters that fit beside the base.

    Args:
        budget: Bytes for base and adapters.
        base: Bytes of the base.
        each: Bytes of an adapter.
        once: Bytes in common to all adapters.
    """
    return max(0, (budget - base - once) // each)


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values, with the numbers of adapters that fit."""
    tree = asdict(report)
    for method, of_method in zip(report.methods, tree["methods"], strict=True):
        of_method["memory"] = {count: report.base_bytes + method.memory(count) for count in COUNTS}
        own, exported = {}, {}
        for name, budget in report.budgets.items():
            own[name] = fitting(budget, report.base_bytes, method.own, method.once)
            exported[name] = None if method.slot is None else fitting(budget, report.base_bytes, method.slot)
        of_method |= {"fits": own, "fits_as_export": exported}
    if report.published:
        figure = {}
        for name, (size, count) in PUBLISHED.items():
            figure[name] = {"adapter_bytes": round(size), "fits": count, "base_bytes": round(PUBLISHED_BASE)}
        tree["published_figure"] = figure
    return tree
