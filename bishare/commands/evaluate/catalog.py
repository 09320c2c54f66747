"""The suites of ``evaluate``: the harness's tasks on the hub's data, and the same tasks on local rows."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from bishare.errors import UserError

FOLDER = Path(__file__).parent
"""Folder of the harness's task files for local rows."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks with a common report."""

    rows: dict[str, str]
    """Rows of the table: the harness's name of a task or group, and its name on local rows."""
    hub_tasks: tuple[str, ...]
    """Tasks to run on the hub's data."""
    folders: tuple[str, ...]
    """Folders of the harness's own task files; an index of all files would take ten seconds."""
    local_task: str
    """Task to run on local rows."""
    files: tuple[str, ...]
    """Local files, in the folder given as ``--data``."""
    shots: int
    """Examples before every question, by default."""
    local_shots: int | None
    """The most examples on local rows; None for any number."""
    averaged: bool = False
    """Whether the table ends with the mean over the tasks."""


# Task and stem of the local file, in the order of the tables published with Bi-Share LoRA.
_COMMONSENSE = {
    "openbookqa": "openbookqa",
    "arc_challenge": "arc_challenge",
    "hellaswag": "hellaswag",
    "arc_easy": "arc_easy",
    "piqa": "piqa",
    "winogrande": "winogrande",
    "boolq": "boolq",
    "social_iqa": "siqa",
}
_MMLU = ("humanities", "other", "social_sciences", "stem")

SUITES = {
    "commonsense": Suite(
        rows={name: f"local_{name}" for name in _COMMONSENSE},
        hub_tasks=tuple(_COMMONSENSE),
        folders=("openbookqa", "arc", "hellaswag", "piqa", "winogrande", "super_glue/boolq", "siqa"),
        local_task="local_commonsense",
        files=tuple(f"commonsense/{file}.jsonl" for file in _COMMONSENSE.values()),
        shots=0,
        local_shots=0,
        averaged=True,
    ),
    "mmlu": Suite(
        rows={**{f"mmlu_{name}": f"local_mmlu::{name}" for name in _MMLU}, "mmlu": "local_mmlu"},
        hub_tasks=("mmlu",),
        folders=("mmlu/default",),
        local_task="local_mmlu",
        files=("mmlu_test.jsonl", "mmlu_dev.jsonl"),
        shots=0,
        local_shots=5,
    ),
    "gsm8k": Suite(
        rows={"gsm8k": "local_gsm8k"},
        hub_tasks=("gsm8k",),
        folders=("gsm8k",),
        local_task="local_gsm8k",
        files=("gsm8k_test.jsonl", "gsm8k_train.jsonl"),
        shots=5,
        local_shots=None,
    ),
}


def find_suite(name: str) -> Suite:
    """The suite of a name.

    Raises:
        UserError: No suite has the name.
    """
    if name not in SUITES:
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the suites are {', '.join(SUITES)}."
        raise UserError(f"{name} is no suite; {hint}")
    return SUITES[name]


def check_local(name: str, suite: Suite, data: str, shots: int) -> None:
    """Check files and number of examples before a run on local rows.

    Raises:
        UserError: A file is missing, or the rows have fewer examples than ``shots``.
    """
    for file in suite.files:
        if not Path(data, file).is_file():
            raise UserError(
                f"suite {name} needs {Path(data, file)}, which is not there; leave out --data to use the hub."
            )
    if suite.local_shots is not None and shots > suite.local_shots:
        raise UserError(
            f"shots is {shots}, but the local rows of {name} have "
            f"{suite.local_shots or 'no'} examples to show; give --shots {suite.local_shots}."
        )
