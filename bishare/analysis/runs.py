"""Reads the curves, answers and evaluations of a run folder, without loading a model."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bishare.errors import UserError

Curve = list[tuple[int, float]]
"""Optimizer steps and values."""


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Every logged scalar, by name; a step that a resumed run repeated has its last value.

    Raises:
        UserError: The folder holds no events.
    """
    events = _events(run)
    curves = {}
    for name in events.Tags()["scalars"]:
        values = {event.step: float(event.value) for event in events.Scalars(name)}
        curves[name] = sorted(values.items())
    return curves


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
            # The callback writes Markdown: the question in bold, an empty line, the answer.
            question, _, answer = event.tensor_proto.string_val[0].decode().partition("\n\n")
            answers[question.removeprefix("**").removesuffix("**")][event.step] = answer
    return dict(answers)


def read_evaluations(run: str | Path) -> list[dict[str, Any]]:
    """The reports of ``evaluate`` beside the adapter of a run, in the order of the file names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(run, "evaluation").glob("*.json"))]


def _events(run: str | Path) -> EventAccumulator:
    if not any(re.match(r"events\.out\.tfevents", path.name) for path in Path(run).glob("*")):
        raise UserError(f"{run} is no run folder: it holds no events; name the trainer.default_root_dir of a run.")
    # 0 keeps every event; images are not needed, and 1 is the lowest limit.
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0, "images": 1})
    events.Reload()
    return events
