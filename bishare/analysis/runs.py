"""What a run folder says about its training: curves, answers, merges and evaluations; no model is loaded."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bishare.adapters.base import Adapter
from bishare.adapters.checkpoint import WEIGHTS, load_tensors, read_adapter
from bishare.errors import UserError

Curve = list[tuple[int, float]]
"""Optimizer steps and values."""


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Every scalar that was logged, by name; of a step that a resumed run repeated, the last value.

    Raises:
        UserError: The folder holds no events.
    """
    events = _events(run)
    curves = {name: {e.step: float(e.value) for e in events.Scalars(name)} for name in events.Tags()["scalars"]}
    return {name: sorted(values.items()) for name, values in curves.items()}


def read_answers(run: str | Path) -> dict[str, dict[int, str]]:
    """The answers of ``callbacks.SampleAnswers``, by question and optimizer step.

    Raises:
        UserError: The folder holds no events.
    """
    events = _events(run)
    answers: dict[str, dict[int, str]] = defaultdict(dict)
    for tag in events.Tags()["tensors"]:
        if not tag.startswith("answers/"):
            continue
        for event in events.Tensors(tag):
            question, _, answer = event.tensor_proto.string_val[0].decode().partition("\n\n")
            answers[question.removeprefix("**").removesuffix("**")][event.step] = answer
    return dict(answers)


def read_evaluations(run: str | Path) -> list[dict[str, Any]]:
    """What ``evaluate`` wrote beside the run's adapter, in the order of the files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(run, "evaluation").glob("*.json"))]


def read_whole_adapter(folder: str | Path) -> Adapter:
    """The adapter of a folder, ready to assemble its factors, without a base model.

    Raises:
        UserError: As ``read_adapter``, or its tensors are not those of its configuration.
    """
    file = read_adapter(folder)
    with torch.random.fork_rng(devices=[]):
        adapter = file.config.build(file.slots).float()
    load_tensors(adapter, file.tensors, where=str(Path(folder, WEIGHTS)))
    return adapter


def _events(run: str | Path) -> EventAccumulator:
    if not any(re.match(r"events\.out\.tfevents", path.name) for path in Path(run).glob("*")):
        raise UserError(f"{run} is no run folder: it holds no events; name the trainer.default_root_dir of a run.")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0, "images": 1})
    events.Reload()
    return events
