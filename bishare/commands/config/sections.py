"""What the sections for trainer and data say about devices, types, batches and steps, before there are any."""

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
"""Of the data modules, which inherit from Lightning."""
SHOWN_DEVICES = (1, 2, 4, 8)
"""Numbers of GPUs to show where all are wanted and none is in sight."""


def strategy_of(trainer: Mapping[str, Any]) -> tuple[str, Literal[0, 1, 2, 3]]:
    """The strategy's name and ZeRO stage."""
    given = trainer.get("strategy") or "auto"
    if isinstance(given, str):
        given = {"class_path": given}
    name = str(given.get("class_path", "auto")).rpartition(".")[2]
    if "deepspeed" not in name.lower():
        return name, 0
    stage = given.get("init_args", {}).get("stage")
    if stage is None:
        stage = next((digit for digit in (1, 2, 3) if f"stage_{digit}" in name), 2)
    if stage not in (1, 2, 3):
        raise UserError(f"trainer.strategy: stage is {stage}; ZeRO has stages 1, 2 and 3.")
    return name, cast(Literal[1, 2, 3], stage)


def devices_of(trainer: Mapping[str, Any], stage: int) -> tuple[Literal["cpu", "gpu"], Sequence[int]]:
    """Kind and number of devices; several numbers where that depends on the machine that will train."""
    accelerator = str(trainer.get("accelerator") or "auto")
    found = torch.cuda.device_count()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not found and not stage)
    nodes = int(trainer.get("num_nodes") or 1)
    devices = trainer.get("devices", "auto")
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    elif isinstance(devices, str) and "," in devices:
        devices = len([part for part in devices.split(",") if part.strip()])
    if isinstance(devices, int) and devices > 0:
        return "cpu" if on_cpu else "gpu", [devices * nodes]
    if on_cpu:
        return "cpu", [nodes]
    return "gpu", [found * nodes] if found else [n * nodes for n in SHOWN_DEVICES]


def data_options(data: Mapping[str, Any]) -> dict[str, int]:
    given = data.get("init_args") or {}
    options = {name: given.get(name, default) for name, default in DATA_DEFAULTS.items()}
    for name, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"data.init_args.{name} is {value}; it must be a whole number of at least 1.")
    return options


def task_of(data: Mapping[str, Any]) -> TaskName | None:
    """The task of GLUE, where sentences are classified.

    Raises:
        UserError: It is not given, or GLUE has no such task.
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
    """Optimizer steps of an epoch, from a local file or from ``max_examples``; None where neither is given.

    Examples that turn out to have no label are not left out, so that a run may have slightly fewer.
    """
    given = data.get("init_args") or {}
    limit = given.get("max_examples")
    path = Path(str(given.get("path", ""))).expanduser()
    if (task := task_of(data)) is not None:  # its validation rows are a file of their own
        local = [_local_rows(path / f"{task}_train{ending}") for ending in (".json", ".jsonl")]
        rows = next((n for n in local if n is not None), None)
    elif (rows := _local_rows(path)) is not None:
        held_out = given.get("num_validation")
        rows -= min(200, rows // 10) if held_out is None else held_out
    known = [n for n in (rows, limit) if n is not None and n > 0]
    return math.ceil(min(known) / data_options(data)["batch_size"]) if known else None


def _local_rows(path: Path) -> int | None:
    """Rows of a JSON or JSONL file; None for anything else, and for a file that fit will refuse."""
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        return (
            len(json.loads(text)) if text.lstrip().startswith("[") else sum(map(bool, map(str.strip, text.split("\n"))))
        )
    except ValueError:
        return None


def positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
