"""The plan of a configuration from shapes alone: parameters, ranks, files, memory, steps and warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from bishare.adapters.base import Adapter
from bishare.adapters.counts import num_bytes, num_lora_values
from bishare.adapters.merge_options import MergeOptions
from bishare.analysis.parameters import ParameterReport, count_parameters
from bishare.commands.config.options import build_options
from bishare.commands.config.sections import (
    data_options,
    devices_of,
    num_classes_of,
    positive,
    steps_per_epoch,
    strategy_of,
    task_of,
)
from bishare.commands.config.settings import Settings
from bishare.commands.plan.memory import Architecture, MemoryEstimate, Setup, architecture_of, estimate_memory
from bishare.errors import UserError
from bishare.models.architectures import build_adapter, build_on_meta, find_architecture
from bishare.models.classifier import head_parameters
from bishare.models.dtypes import base_type
from bishare.models.export import VLLM_RANKS, vllm_rank

FP32 = 4
"""Bytes of a value."""

TENSOR_HEADER = 110
"""Approximate bytes of a tensor's entry in a safetensors header."""

CHECKPOINT_ENTRY = 900
"""Approximate bytes around a parameter and the two moments in a training checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Bytes on disk."""

    adapter: int
    peft: int
    """A plain LoRA of the assembled rank, in fp32, for PEFT and vLLM."""
    checkpoint: int
    """Adapter, optimizer and the state of the run, without the base."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a configuration."""

    base: str
    method: str
    num_slots: int
    num_layers: int
    parameters: ParameterReport
    merged: ParameterReport | None
    """After all merges, if merging is configured."""
    rank_bounds: Mapping[str, int]
    """The highest possible rank of an update, by kind of weight."""
    files: Files
    strategy: str
    device: str
    precision: str
    memory: Mapping[int, MemoryEstimate]
    """By the number of devices."""
    batch_size: int
    steps_per_epoch: int | None
    """None for data of unknown size, as on the hub."""
    max_steps: int | None
    warnings: Sequence[str]

    @property
    def rank(self) -> int:
        return max(self.rank_bounds.values())


def make_plan(settings: Settings) -> Plan:
    """Count and estimate without weights and without downloads.

    Raises:
        UserError: For every mistake in the configuration; the base's architecture is not found.
    """
    config = find_architecture(
        settings.model.base,
        revision=settings.model.revision,
        trust_remote_code=settings.model.trust_remote_code,
        files=settings.files,
        given=settings.architecture,
    )
    num_classes = num_classes_of(settings.data)
    model = build_on_meta(config, num_classes=num_classes, trust_remote_code=settings.model.trust_remote_code)
    head = [] if num_classes is None else list(head_parameters(model).values())
    adapter = build_adapter(model, settings.model.adapter)
    before = count_parameters(adapter, model, head)
    merging = merge_as_planned(adapter, settings.trainer)
    after = count_parameters(adapter, model, head) if merging else None
    bounds = rank_bounds(adapter)
    architecture = architecture_of(model, config)
    if num_classes is not None:
        # A classifier has a row of logits for each example in place of a row for each token.
        architecture = replace(architecture, vocabulary=num_classes)
    strategy, stage = strategy_of(settings.trainer)
    precision = str(settings.trainer.get("precision") or "32-true")
    device, counts = devices_of(settings.trainer, stage)
    setups = {n: setup_of(settings, device=device, num_devices=n, stage=stage, precision=precision) for n in counts}
    estimates = {n: _estimate(architecture, setup, adapter, before, bounds) for n, setup in setups.items()}
    options = data_options(settings.data)
    return Plan(
        base=settings.model.base,
        method=settings.model.adapter.method,
        num_slots=len(adapter.slots),
        num_layers=len({slot.layer for slot in adapter.slots}),
        parameters=before,
        merged=after,
        rank_bounds=bounds,
        files=file_sizes(adapter, head),
        strategy=strategy,
        device=device,
        precision=precision,
        memory=estimates,
        batch_size=options["batch_size"],
        steps_per_epoch=steps_per_epoch(settings.data),
        max_steps=positive(settings.trainer.get("max_steps")),
        warnings=warnings_for(adapter, after or before, max(bounds.values())),
    )


def merge_as_planned(adapter: Adapter, trainer: Mapping[str, Any]) -> bool:
    """Tie as many layers as ``callbacks.AdaptiveMerging`` will; the counts do not depend on the choice of layers.

    Returns:
        Whether merging is configured.

    Raises:
        UserError: An option is wrong, or the adapter has fewer layers to merge than the options require.
    """
    callbacks = trainer.get("callbacks") or []
    given = [c for c in callbacks if isinstance(c, Mapping) and str(c.get("class_path")).endswith("AdaptiveMerging")]
    if not given:
        return False
    options = build_options(MergeOptions, given[0].get("init_args") or {}, key="trainer.callbacks.AdaptiveMerging")
    groups = adapter.mergeable_groups()
    for name, num_merges in options.merges_of(adapter).items():
        for _ in range(num_merges):
            groups[name].tie(*groups[name].live[:2])
    return True


def rank_bounds(adapter: Adapter) -> dict[str, int]:
    """The highest possible rank of an update, by kind of weight: the least of the rows of A and the weight's sides."""
    bounds: dict[str, int] = {}
    shapes: dict[tuple[str, int, int], int] = {}  # of a kind and shape once, since layers repeat them
    for slot in adapter.slots:
        shape = (slot.kind, slot.in_features, slot.out_features)
        if shape not in shapes:
            shapes[shape] = min(adapter.factors(slot).rank, slot.in_features, slot.out_features)
        bounds[slot.kind] = max(bounds.get(slot.kind, 0), shapes[shape])
    return bounds


def file_sizes(adapter: Adapter, head: Sequence[torch.nn.Parameter] = ()) -> Files:
    """Bytes of the files that a training leaves.

    Args:
        adapter: The adapter, on any device.
        head: Parameters of a classification head, trained in full and in fp32.
    """
    live = adapter.live_parameters()
    stored = [*live.values(), *adapter.file_buffers().values(), *head]
    resumed = [*adapter.parameters(), *head]  # a checkpoint holds merged-away parameters too
    state = adapter.state_dict()
    kept = [buffer for name, buffer in adapter.named_buffers() if name in state]
    rank = adapter.factors(adapter.slots[0]).rank
    return Files(
        adapter=num_bytes(stored) + TENSOR_HEADER * len(stored),
        peft=FP32 * num_lora_values(adapter.slots, rank) + 2 * TENSOR_HEADER * len(adapter.slots),
        checkpoint=3 * num_bytes(resumed) + num_bytes(kept) + CHECKPOINT_ENTRY * len(resumed),
    )


def warnings_for(adapter: Adapter, report: ParameterReport, rank: int) -> list[str]:
    """Notes on costs that are easily overlooked.

    Args:
        adapter: The adapter after all merges.
        report: Parameter counts of the adapter.
        rank: The highest rank of an update.
    """
    warnings = []
    plain = num_lora_values(adapter.slots, rank)
    if plain < report.num_live:
        warnings.append(
            f"a plain LoRA of rank {rank} holds {plain:,} values and contains this adapter, which holds "
            f"{report.num_live:,}: the LoRA can learn every update of this adapter, and more."
        )
    if not adapter.starts_as_noop:
        warnings.append(
            f"{adapter.config.method} does not start as the base model: a fresh adapter changes the base's answers."
        )
    slot = vllm_rank(rank)
    if slot is None:
        warnings.append(f"the exported LoRA has rank {rank}, more than vLLM serves ({VLLM_RANKS[-1]}); merge it.")
    elif slot != rank:
        warnings.append(f"the exported LoRA has rank {rank}, which takes a slot of {slot} in vLLM (--max-lora-rank).")
    return warnings


def _estimate(
    architecture: Architecture, setup: Setup, adapter: Adapter, report: ParameterReport, bounds: Mapping[str, int]
) -> MemoryEstimate:
    return estimate_memory(
        architecture,
        setup,
        adapter.slots,
        num_adapter=report.num_live + report.head,
        buffer_bytes=num_bytes(adapter.buffers()),
        rank=max(bounds.values()),
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; sizes are in bytes."""
    tree = asdict(plan)
    tree["parameters"] = _counts(plan.parameters)
    tree["merged"] = _counts(plan.merged) if plan.merged else None
    tree["memory"] = {n: {**asdict(estimate), "total": estimate.total} for n, estimate in plan.memory.items()}
    return tree


def _counts(report: ParameterReport) -> dict[str, Any]:
    return {
        "total": report.num_live,
        "parts": dict(report.live),
        "dead": report.num_dead,
        "base": report.base,
        "head": report.head,
        "lora_r8": report.lora,
        "fraction_of_base": report.fraction_of_base,
        "fraction_of_lora_r8": report.fraction_of_lora,
    }


def setup_of(
    settings: Settings, *, device: Literal["cpu", "gpu"], num_devices: int, stage: Literal[0, 1, 2, 3], precision: str
) -> Setup:
    """Devices, types and batch of the training.

    Raises:
        UserError: A step has fewer examples than there are devices.
    """
    options = data_options(settings.data)
    given = settings.data.get("init_args") or {}
    base_bytes = 4 if base_type(settings.model.base_dtype, device) == "float32" else 2
    mixed = precision.startswith(("bf16", "16"))
    if stage:
        # DeepSpeed casts the whole model to the type of the precision.
        base_bytes = 2 if mixed else 4
    if num_devices > options["batch_size"]:
        raise UserError(f"data.batch_size is {options['batch_size']}, fewer than the {num_devices} devices.")
    return Setup(
        device=device,
        num_devices=num_devices,
        zero_stage=stage,
        base_bytes=base_bytes,
        live_bytes=2 if stage and mixed else 4,
        compute_bytes=2 if mixed else base_bytes,
        batch_size=options["batch_size"],
        tokens_per_micro_batch=options["tokens_per_micro_batch"],
        max_length=options["max_length"],
        packing=task_of(settings.data) is None and given.get("packing", True) is not False,
        dropout=settings.model.adapter.dropout > 0,
        gradient_checkpointing=settings.model.gradient_checkpointing,
    )
