"""Scores of one evaluation as JSON, Markdown and a table for a terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich
from rich.markup import escape
from rich.table import Column, Table

from bishare.commands.evaluate.catalog import Suite
from bishare.commands.evaluate.published import TASKS, Published
from bishare.files import write_text

AVERAGE = "average"
NOT_COMPARABLE = "local sample, not comparable"


@dataclass(frozen=True)
class Score:
    """A mean over questions, 0 to 1."""

    value: float
    stderr: float | None
    """Standard error; None of a single question."""


Scores = Mapping[str, Mapping[str, Score]]
"""By row of the table and metric."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is written about one evaluation."""

    suite: str
    shots: int
    limit: int | None
    """Questions of each task."""
    data: str
    """``hub``, or that the rows were local ones."""
    adapter: str
    method: str
    adapter_sha256: str
    base: str
    base_sha256: str | None
    versions: Mapping[str, str]
    dtype: str
    device: str
    batch_size: int
    seconds: float
    num_questions: Mapping[str, int]
    scores: Scores
    base_scores: Scores | None
    published: Sequence[Published]
    subtasks: Scores
    """Where a row is a group: the scores of its tasks."""


def read_scores(results: Mapping[str, Any], suite: Suite, *, local: bool) -> Scores:
    """The table's rows from what the harness returns, the mean over the tasks last where the suite has one."""
    scores = {row: _metrics(results["results"][name if local else row]) for row, name in suite.rows.items()}
    if suite.averaged:
        scores[AVERAGE] = _average(list(scores.values()))
    return scores


def read_subtasks(results: Mapping[str, Any], suite: Suite) -> Scores:
    """The scores of the tasks that are no row themselves."""
    rows = {*suite.rows, *suite.rows.values(), suite.local_task}
    return {
        name.rpartition("::")[2]: _metrics(result) for name, result in results["results"].items() if name not in rows
    }


def count_questions(results: Mapping[str, Any], suite: Suite, *, local: bool) -> dict[str, int]:
    """Questions of each row."""

    def count(name: str) -> int:
        members = results["group_subtasks"].get(name, [])
        return sum(map(count, members)) if members else int(results["n-samples"][name]["effective"])

    return {row: count(name if local else row) for row, name in suite.rows.items()}


def _metrics(result: Mapping[str, Any]) -> dict[str, Score]:
    """``{"acc,none": 0.5, "acc_stderr,none": 0.1}`` as ``{"acc": Score(0.5, 0.1)}``."""
    scores = {}
    for key, value in result.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = result.get(f"{metric}_stderr,{filter_name}")
        name = metric if filter_name == "none" else f"{metric} ({filter_name})"
        scores[name] = Score(float(value), float(stderr) if isinstance(stderr, float) else None)
    return scores


def _average(tasks: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Mean over tasks of each metric; of ``acc`` where a task has no ``acc_norm``."""
    means = {}
    for metric in dict.fromkeys(metric for scores in tasks for metric in scores):
        chosen = [scores.get(metric, scores["acc"]) for scores in tasks]
        errors = [score.stderr for score in chosen]
        known = [error for error in errors if error is not None]
        stderr = math.sqrt(sum(error**2 for error in known)) / len(tasks) if len(known) == len(errors) else None
        means[metric] = Score(sum(score.value for score in chosen) / len(tasks), stderr)
    return means


def _cells(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, scores in percent."""
    metrics = list(dict.fromkeys(metric for scores in report.scores.values() for metric in scores))
    head = ["task", "n"]
    for metric in metrics:
        head += [f"base {metric}", metric] if report.base_scores else [metric]
    head += [row.name for row in report.published]
    rows = []
    for name, scores in report.scores.items():
        cells = [name, f"{report.num_questions[name]:,}" if name in report.num_questions else ""]
        for metric in metrics:
            if report.base_scores:
                cells.append(_cell(report.base_scores[name].get(metric)))
            cells.append(_cell(scores.get(metric)))
        for row in report.published:
            published = dict(zip(TASKS, row.scores, strict=True)) | {AVERAGE: sum(row.scores) / len(row.scores)}
            cells.append(f"{published[name]:.2f}")
        rows.append(cells)
    return head, rows


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    value = f"{100 * score.value:.1f}"
    return value if score.stderr is None else f"{value} ± {100 * score.stderr:.1f}"


def _facts(report: Report) -> list[str]:
    """What the scores belong to, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    base_hash = f", SHA-256 {report.base_sha256}" if report.base_sha256 else ""
    limit = f"the first {report.limit:,} of each task" if report.limit else "all"
    facts = [
        f"data: {report.data}; questions: {limit}",
        f"adapter: {report.adapter} ({report.method}), SHA-256 {report.adapter_sha256}",
        f"base: {report.base}{base_hash}",
        f"{versions}; {report.dtype} on {report.device}, batch size {report.batch_size}, {report.seconds:,.0f} s",
        "n questions, percent ± one standard error",
    ]
    if AVERAGE in report.scores:
        facts[-1] += "; the average of acc_norm takes acc where a task has no acc_norm"
    if report.published:
        facts.append("published: one seed; whether a task's score is acc or acc_norm is not said there")
    return facts


def _title(report: Report) -> str:
    return f"{report.suite}, {report.shots}-shot"


def markdown(report: Report) -> str:
    """The report as a page."""
    head, rows = _cells(report)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    facts = "\n".join(f"- {fact}" for fact in _facts(report))
    return f"# {_title(report)}\n\n{table}\n\n{facts}\n"


def show(report: Report) -> None:
    """Print the table."""
    head, rows = _cells(report)
    title = f"{_title(report)} ({report.data})"
    table = Table(Column(head[0], no_wrap=True), title=escape(title), title_justify="left")
    for name in head[1:]:
        table.add_column(escape(name), justify="right")
    for cells in rows:
        table.add_row(*map(escape, cells), end_section=cells is rows[-2] if len(rows) > 1 else False)
    rich.get_console().print(table)


def save(report: Report, samples: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write ``SUITE-Nshot.json``, ``.md`` and ``.samples.jsonl``, with a number where there are such files already.

    Returns:
        The page.
    """
    stem = first = f"{report.suite}-{report.shots}shot"
    number = 1
    while (folder / f"{stem}.json").exists():
        number += 1
        stem = f"{first}-{number}"
    content = asdict(report) | {"published": [row.name for row in report.published]}
    write_text(folder / f"{stem}.samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))
    write_text(folder / f"{stem}.md", markdown(report))
    write_text(folder / f"{stem}.json", json.dumps(content, indent=1) + "\n")  # last: it says that all are there
    return folder / f"{stem}.md"
