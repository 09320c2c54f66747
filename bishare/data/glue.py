"""The tasks of GLUE: their fields, classes and metrics, and how a row becomes a sentence or a pair with its label.

Wang et al., 2019 (arXiv:1804.07461), table 1.
"""

from typing import Any, Literal, NamedTuple

from bishare.data.rows import check_object, field_of, text_of
from bishare.errors import UserError

TaskName = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]

SENTENCES = ("sentence1", "sentence2")
"""The names that the sentences of every task may have in files of the user's own."""
HIGHEST = 5.0
"""The largest score of STS-B; the smallest is 0."""


class Task(NamedTuple):
    """One task of GLUE."""

    fields: tuple[str, ...]
    """The sentences' names on the hub, one or two."""
    num_classes: int = 2
    """1 for a score, which is a regression."""
    metrics: tuple[Metric, ...] = ("accuracy",)
    """What GLUE reports; where there are two, their mean is the score."""
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
    """The example that the fields of a row make up.

    Args:
        fields: The row as it was read.
        name: The task.
        where: File and row, for messages.

    Raises:
        UserError: If a field is missing or holds something else than it should.
    """
    task = TASKS[name]
    check_object(fields, where)
    names = task.fields if task.fields[0] in fields else SENTENCES[: len(task.fields)]
    sentences = tuple(text_of(fields, field, where) for field in names)
    return Labelled(sentences, _label(field_of(fields, "label", where), name, where))


def _label(value: Any, name: TaskName, where: str) -> float:
    num_classes = TASKS[name].num_classes
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if num_classes == 1:
        if not is_number or not 0 <= value <= HIGHEST:
            raise UserError(f"{where}: label is {value!r}; {name} has scores from 0 to {HIGHEST:g}.")
        return float(value)
    if not is_number or value not in range(num_classes):
        classes = ", ".join(map(str, range(num_classes - 1)))
        hidden = " (GLUE's test splits hide their labels)" if value == -1 else ""
        raise UserError(f"{where}: label is {value!r}; {name} has the classes {classes} and {num_classes - 1}{hidden}.")
    return float(value)
