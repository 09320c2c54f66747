"""Devices, strategy, batches and steps as the sections trainer and data give them, read without a trainer."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch

from bishare.commands.config.settings import CLASSIFICATION
from bishare.data.glue import TASKS, TaskName
from bishare.errors import UserError

DATA_DEFAULTS = {"batch_size": 64, "tokens_per_micro_batch": 1024, "max_length": 256}
"""Defaults of the data modules, repeated here because data modules import Lightning; a test compares both."""
SHOWN_DEVICES = (1, 2, 4, 8)
"""Numbers of GPUs to show for a configuration of all GPUs, on a machine without any."""

Device = Literal["cpu", "gpu"]


def strategy_of(trainer: Mapping[str, Any]) -> tuple[str, Literal[0, 1, 2, 3]]:
    """The strategy's name and ZeRO stage, 0 without ZeRO.

    Raises:
        UserError: ZeRO has no such stage.
    """
    given = trainer.get("strategy") or "auto"
    if isinstance(given, str):
        given = {"class_path": given}
    name = str(given.get("class_path", "auto")).rpartition(".")[2]
    if "deepspeed" not in name.lower():
        return name, 0
    stage = given.get("init_args", {}).get("stage")
    if stage is None:
        # Lightning's short names carry the stage, as in deepspeed_stage_3; the default is stage 2.
        stage = next((digit for digit in (1, 2, 3) if f"stage_{digit}" in name), 2)
    if stage not in (1, 2, 3):
        raise UserError(f"trainer.strategy: stage is {stage}; ZeRO has stages 1, 2 and 3.")
    return name, cast(Literal[1, 2, 3], stage)


def devices_of(trainer: Mapping[str, Any], stage: int) -> tuple[Device, Sequence[int]]:
    """Kind and number of devices.

    Args:
        trainer: The section.
        stage: ZeRO stage; ZeRO without an accelerator means GPUs.

    Returns:
        The kind, and the number of devices on all nodes. A configuration of all GPUs has several numbers on a machine
        without GPUs.
    """
    num_gpus = torch.cuda.device_count()
    device = _device_kind(trainer, stage, num_gpus)
    num_nodes = int(trainer.get("num_nodes") or 1)
    given = _devices_per_node(trainer.get("devices", "auto"))
    if given is not None:
        per_node = [given]
    elif device == "cpu":
        per_node = [1]
    else:
        # All GPUs of each node: those of this machine, or guesses.
        per_node = [num_gpus] if num_gpus else list(SHOWN_DEVICES)
    return device, [count * num_nodes for count in per_node]


def _device_kind(trainer: Mapping[str, Any], stage: int, num_gpus: int) -> Device:
    accelerator = str(trainer.get("accelerator") or "auto")
    if accelerator == "cpu":
        return "cpu"
    if accelerator == "auto" and not num_gpus and not stage:
        return "cpu"
    return "gpu"


def _devices_per_node(devices: Any) -> int | None:
    """The number that ``devices`` gives in any of Lightning's notations; None for all devices (auto, -1)."""
    if isinstance(devices, list):
        devices = len(devices)
    elif isinstance(devices, str):
        if "," in devices:
            devices = len([part for part in devices.split(",") if part.strip()])
        elif devices.lstrip("-").isdigit():
            devices = int(devices)
    return positive(devices)


def data_options(data: Mapping[str, Any]) -> dict[str, int]:
    """Batch and lengths of the data section, with defaults.

    Raises:
        UserError: A value is no positive whole number.
    """
    given = data.get("init_args") or {}
    options = {name: given.get(name, default) for name, default in DATA_DEFAULTS.items()}
    for name, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"data.init_args.{name} is {value}; it must be a whole number of at least 1.")
    return options


def task_of(data: Mapping[str, Any]) -> TaskName | None:
    """The task of GLUE; None for data without classes.

    Raises:
        UserError: The task is missing, or GLUE has no such task.
    """
    if str(data.get("class_path", "")).rpartition(".")[2] != CLASSIFICATION:
        return None
    task = (data.get("init_args") or {}).get("task")
    if task not in TASKS:
        raise UserError(f"data.init_args.task is {task}; GLUE has {', '.join(TASKS)}.")
    return cast(TaskName, task)


def num_classes_of(data: Mapping[str, Any]) -> int | None:
    """Classes of the task, 1 for scores; None for language models."""
    task = task_of(data)
    return None if task is None else TASKS[task].num_classes


def steps_per_epoch(data: Mapping[str, Any]) -> int | None:
    """Optimizer steps of an epoch, from a local file or from ``max_examples``; None if both are missing.

    Rows without a label count too, so that a run may have slightly fewer steps.
    """
    given = data.get("init_args") or {}
    num_rows = _training_rows(given, task_of(data))
    known = [count for count in (num_rows, given.get("max_examples")) if count is not None and count > 0]
    if not known:
        return None
    return math.ceil(min(known) / data_options(data)["batch_size"])


def _training_rows(given: Mapping[str, Any], task: TaskName | None) -> int | None:
    """Rows to train on in a local file or folder; None for data elsewhere."""
    path = Path(str(given.get("path", ""))).expanduser()
    if task is not None:
        # GLUE keeps the validation rows in a second file.
        counts = [_local_rows(path / f"{task}_train{ending}") for ending in (".json", ".jsonl")]
        return next((count for count in counts if count is not None), None)
    num_rows = _local_rows(path)
    if num_rows is None:
        return None
    held_out = given.get("num_validation")
    if held_out is None:
        held_out = min(200, num_rows // 10)
    return num_rows - int(held_out)


def _local_rows(path: Path) -> int | None:
    """Rows of a JSON or JSONL file; None for anything else, and for a file that ``fit`` will refuse."""
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return len(json.loads(text))
    except ValueError:
        return None
    return sum(1 for line in text.split("\n") if line.strip())


def positive(value: Any) -> int | None:
    """The value if positive and whole, or None."""
    return value if isinstance(value, int) and value > 0 else None
