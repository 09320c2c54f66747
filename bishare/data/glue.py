"""The tasks of GLUE with their fields, classes and metrics, and the parsing of their rows.

Wang et al., 2019 (arXiv:1804.07461), table 1.
"""

from typing import Any, Literal, NamedTuple

from bishare.data.fields import check_object, field_of, text_of
from bishare.errors import UserError

TaskName = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]

SENTENCES = ("sentence1", "sentence2")
"""Field names of the sentences in the user's own files, for every task."""
MAX_SCORE = 5.0
"""The largest score of STS-B; the smallest is 0."""


class Task(NamedTuple):
    """A task of GLUE."""

    fields: tuple[str, ...]
    """Field names of a sentence or of a pair of sentences on the hub."""
    num_classes: int = 2
    """1 for a score: the task is a regression."""
    metrics: tuple[Metric, ...] = ("accuracy",)
    """The metrics of GLUE; the score of a task with two metrics is their mean."""
    validation: str = "validation"
    """Name of the split to validate on."""


TASKS: dict[TaskName, Task] = {
    "cola": Task(("sentence",), metrics=("matthews",)),
    "sst2": Task(("sentence",)),
    "mrpc": Task(("sentence1", "sentence2"), metrics=("f1", "accuracy")),
    "qqp": Task(("question1", "question2"), metrics=("f1", "accuracy")),
    "stsb": Task(("sentence1", "sentence2"), num_classes=1, metrics=("pearson", "spearman")),
    "mnli": Task(("premise", "hypothesis"), num_classes=3, validation="validation_matched"),
    "qnli": Task(("question", "sentence")),
    "rte": Task(("sentence1", "sentence2")),
    "wnli": Task(("sentence1", "sentence2")),
}


class Labelled(NamedTuple):
    """A sentence or a pair of sentences with its label."""

    sentences: tuple[str, ...]
    label: float
    """The number of the class, or the score."""


def parse_labelled(fields: Any, name: TaskName, where: str) -> Labelled:
    """The labelled sentences of a row.

    Args:
        fields: The fields of the row, as read.
        name: The task.
        where: File and row, for messages.

    Raises:
        UserError: If a field is missing, a sentence is no text, or the label is out of range.
    """
    task = TASKS[name]
    check_object(fields, where)
    names = task.fields if task.fields[0] in fields else SENTENCES[: len(task.fields)]
    sentences = tuple(text_of(fields, field, where) for field in names)
    return Labelled(sentences, _label(field_of(fields, "label", where), name, where))


def _label(value: Any, name: TaskName, where: str) -> float:
    num_classes = TASKS[name].num_classes
    # In Python, True and False are ints.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if num_classes == 1:
        if not is_number or not 0 <= value <= MAX_SCORE:
            raise UserError(f"{where}: label is {value!r}; {name} has scores from 0 to {MAX_SCORE:g}.")
        return float(value)
    if not is_number or value not in range(num_classes):
        classes = ", ".join(map(str, range(num_classes - 1)))
        hidden = " (GLUE's test splits hide their labels)" if value == -1 else ""
        raise UserError(f"{where}: label is {value!r}; {name} has the classes {classes} and {num_classes - 1}{hidden}.")
    return float(value)
