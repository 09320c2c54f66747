"""Devices, strategy, steps and task as trainer and data say them."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from bishare.commands.config.sections import (
    DATA_DEFAULTS,
    data_options,
    devices_of,
    num_classes_of,
    positive,
    steps_per_epoch,
    strategy_of,
)
from bishare.data.prompt_data import PromptData
from bishare.errors import UserError

GLUE = {"class_path": "bishare.data.ClassificationData"}


def test_defaults_are_those_of_data_modules() -> None:
    defaults = {field.name: field.default for field in fields(PromptData)}

    assert {name: defaults[name] for name in DATA_DEFAULTS} == DATA_DEFAULTS


@pytest.mark.parametrize(
    ("trainer", "found"),
    [
        ({}, ("auto", 0)),
        ({"strategy": "ddp"}, ("ddp", 0)),
        ({"strategy": "deepspeed_stage_3"}, ("deepspeed_stage_3", 3)),
        ({"strategy": "deepspeed"}, ("deepspeed", 2)),
        ({"strategy": {"class_path": "bishare.deepspeed.BiShareDeepSpeed"}}, ("BiShareDeepSpeed", 2)),
        (
            {"strategy": {"class_path": "bishare.deepspeed.BiShareDeepSpeed", "init_args": {"stage": 1}}},
            ("BiShareDeepSpeed", 1),
        ),
    ],
)
def test_strategy_and_stage_in_every_notation(trainer: dict[str, Any], found: tuple[str, int]) -> None:
    name, stage = found
    assert strategy_of({"strategy": None, **trainer}) == (name.rpartition(".")[2], stage)


def test_unknown_stage_is_refused() -> None:
    strategy = {"class_path": "bishare.deepspeed.BiShareDeepSpeed", "init_args": {"stage": 4}}
    with pytest.raises(UserError, match="stage is 4; ZeRO has stages 1, 2 and 3"):
        strategy_of({"strategy": strategy})


@pytest.mark.parametrize(
    ("trainer", "num_gpus", "found"),
    [
        ({"devices": 3}, 0, ("cpu", [3])),
        ({"devices": "2", "num_nodes": 2}, 4, ("gpu", [4])),
        ({"devices": [0, 2]}, 4, ("gpu", [2])),
        ({"devices": "0,1,5"}, 8, ("gpu", [3])),
        ({"devices": "0,"}, 8, ("gpu", [1])),
        ({"devices": 2, "accelerator": "gpu"}, 0, ("gpu", [2])),
        ({"devices": 2, "accelerator": "cpu"}, 8, ("cpu", [2])),
        ({}, 0, ("cpu", [1])),
        ({}, 4, ("gpu", [4])),
        ({"devices": -1}, 4, ("gpu", [4])),
        ({"devices": "-1", "accelerator": "gpu"}, 0, ("gpu", [1, 2, 4, 8])),
        ({"accelerator": "gpu", "num_nodes": 2}, 0, ("gpu", [2, 4, 8, 16])),
    ],
)
def test_devices_in_every_notation(
    trainer: dict[str, Any], num_gpus: int, found: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert devices_of(trainer, 0) == found


def test_deepspeed_trains_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_of({}, 2) == ("gpu", [1, 2, 4, 8])


def test_data_options_must_be_positive() -> None:
    assert data_options({"init_args": {"batch_size": 8}}) == {**DATA_DEFAULTS, "batch_size": 8}
    with pytest.raises(UserError, match=r"data\.init_args\.max_length is 0; .* whole number of at least 1"):
        data_options({"init_args": {"max_length": 0}})


def test_task_gives_number_of_classes() -> None:
    assert num_classes_of({"class_path": "bishare.data.InstructionData"}) is None
    assert num_classes_of({**GLUE, "init_args": {"task": "mnli"}}) == 3
    with pytest.raises(UserError, match="task is None; GLUE has cola, "):
        num_classes_of(GLUE)


def test_steps_of_glue_are_counted(tmp_path: Path) -> None:
    (tmp_path / "rte_train.jsonl").write_text("{}\n\n{}\n{}\n")
    data = {**GLUE, "init_args": {"task": "rte", "path": str(tmp_path), "batch_size": 2}}
    assert steps_per_epoch(data) == 2  # empty lines are no rows


def test_broken_file_has_unknown_steps(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[{")
    assert steps_per_epoch({"init_args": {"path": str(tmp_path / "rows.json")}}) is None


@pytest.mark.parametrize(("value", "found"), [(3, 3), (-1, None), (None, None), ("3", None)])
def test_limit_counts_when_positive(value: object, found: int | None) -> None:
    assert positive(value) == found


@pytest.mark.parametrize("form", ["lines", "list"])
def test_steps_from_local_file(tmp_path: Path, form: str) -> None:
    rows = [{"instruction": "a", "output": "b"}] * 150
    path = tmp_path / ("rows.jsonl" if form == "lines" else "rows.json")
    path.write_text("\n".join(map(json.dumps, rows)) if form == "lines" else json.dumps(rows))
    data = {"class_path": "bishare.data.InstructionData", "init_args": {"path": str(path), "batch_size": 10}}

    assert steps_per_epoch(data) == 14  # 15 rows are held out
    assert steps_per_epoch({"init_args": data["init_args"] | {"num_validation": 0, "max_examples": 31}}) == 4


def test_steps_from_max_examples() -> None:
    assert steps_per_epoch({"init_args": {"max_examples": 641, "batch_size": 8}}) == 81
