"""Scores and questions out of the harness's results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bishare.commands.evaluate.catalog import Suite

AVERAGE = "average"
"""Name of the last row of a suite that is averaged over tasks."""


@dataclass(frozen=True)
class Score:
    """A mean over questions, 0 to 1."""

    value: float
    stderr: float | None
    """Standard error; None for a single question."""


Scores = Mapping[str, Mapping[str, Score]]
"""By row of the table and metric."""


def read_scores(results: Mapping[str, Any], suite: Suite, *, local: bool) -> Scores:
    """Scores of the table's rows; a suite with an average has the mean over the tasks in a last row."""
    scores = {row: _metrics(results["results"][name if local else row]) for row, name in suite.rows.items()}
    if suite.averaged:
        scores[AVERAGE] = _average(list(scores.values()))
    return scores


def read_subtasks(results: Mapping[str, Any], suite: Suite) -> Scores:
    """Scores of the tasks without a row of their own."""
    rows = {*suite.rows, *suite.rows.values(), suite.local_task}
    scores = {}
    for name, result in results["results"].items():
        if name not in rows:
            scores[name.rpartition("::")[2]] = _metrics(result)
    return scores


def count_questions(results: Mapping[str, Any], suite: Suite, *, local: bool) -> dict[str, int]:
    """Questions of each row."""

    def count(name: str) -> int:
        members = results["group_subtasks"].get(name, [])
        if members:
            return sum(map(count, members))
        return int(results["n-samples"][name]["effective"])

    return {row: count(name if local else row) for row, name in suite.rows.items()}


def read_samples(results: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """Every question's result: the log-likelihood of each choice, or the answer's text, and the metrics.

    Args:
        results: Results of the harness.
        model: Name of the model, noted with every question.
    """
    found = []
    for task, samples in results["samples"].items():
        name = task.rpartition("::")[2].removeprefix("local_")
        for sample in samples:
            metrics = {metric: sample[metric] for metric in sample["metrics"]}
            found.append(
                {
                    "model": model,
                    "task": name,
                    "question": sample["doc_id"],
                    "target": sample["target"],
                    "filter": sample["filter"],
                    "choices": [_choice(response) for response in sample["filtered_resps"]],
                    **metrics,
                }
            )
    return found


def _choice(response: Any) -> Any:
    """A generated text, or a choice's log-likelihood without the flag of greedy decoding beside it."""
    return response[0] if isinstance(response, tuple) else response


def _metrics(result: Mapping[str, Any]) -> dict[str, Score]:
    """``{"acc,none": 0.5, "acc_stderr,none": 0.1}`` as ``{"acc": Score(0.5, 0.1)}``."""
    scores = {}
    for key, value in result.items():
        # Keys are "metric,filter"; all others are no scores.
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = result.get(f"{metric}_stderr,{filter_name}")
        name = metric if filter_name == "none" else f"{metric} ({filter_name})"
        scores[name] = Score(float(value), float(stderr) if isinstance(stderr, float) else None)
    return scores


def _average(tasks: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Mean over tasks of each metric; of ``acc`` for a task without ``acc_norm``."""
    metrics: dict[str, None] = {}  # a set in the order of first appearance
    for scores in tasks:
        metrics |= dict.fromkeys(scores)
    means = {}
    for metric in metrics:
        chosen = [scores.get(metric, scores["acc"]) for scores in tasks]
        mean = sum(score.value for score in chosen) / len(tasks)
        means[metric] = Score(mean, _stderr_of_mean([score.stderr for score in chosen]))
    return means


def _stderr_of_mean(errors: Sequence[float | None]) -> float | None:
    """Standard error of a mean of independent means; None unless each has an error."""
    total = 0.0
    for error in errors:
        if error is None:
            return None
        total += error**2
    return math.sqrt(total) / len(errors)
