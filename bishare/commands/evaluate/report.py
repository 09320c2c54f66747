"""The report of an evaluation as JSON, Markdown and a table for a terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rich
import torch
import transformers
from rich.markup import escape
from rich.table import Column, Table

from bishare.commands.evaluate.catalog import SUITES, Suite
from bishare.commands.evaluate.evaluation import Evaluation
from bishare.commands.evaluate.hashes import adapter_hash, base_hash
from bishare.commands.evaluate.options import Options
from bishare.commands.evaluate.published import TASKS, Published, published_for
from bishare.commands.evaluate.scores import AVERAGE, Score, Scores, count_questions, read_scores, read_subtasks
from bishare.files import write_text
from bishare.models.sources import find_base
from bishare.version import __version__

NOT_COMPARABLE = "local sample, not comparable"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores of an evaluation, with everything that decides them."""

    suite: str
    shots: int
    limit: int | None
    """Questions of each task; None for all."""
    data: str
    """``hub``, or a note on local rows."""
    adapter: str
    method: str
    adapter_sha256: str
    base: str
    base_sha256: str | None
    """None for a base on the hub."""
    versions: Mapping[str, str]
    """By package."""
    dtype: str
    device: str
    batch_size: int
    seconds: float
    num_questions: Mapping[str, int]
    """By row."""
    scores: Scores
    base_scores: Scores | None
    """Scores without the adapter, on request."""
    published: Sequence[Published]
    subtasks: Scores
    """Scores of the tasks inside a row that is a group."""


def make_report(options: Options, suite: Suite, shots: int, evaluation: Evaluation) -> Report:
    """Collect scores, versions and hashes.

    Raises:
        UserError: A file of the adapter or the base can't be read.
    """
    local = options.data is not None
    base_scores = None
    if evaluation.base_results is not None:
        base_scores = read_scores(evaluation.base_results, suite, local=local)
    # Published scores are those of the hub's questions.
    published = published_for(evaluation.config) if suite is SUITES["commonsense"] and not local else []
    return Report(
        suite=options.suite,
        shots=shots,
        limit=options.limit,
        data=NOT_COMPARABLE if local else "hub",
        adapter=options.adapter,
        method=evaluation.config.method,
        adapter_sha256=adapter_hash(options.adapter),
        base=evaluation.base,
        base_sha256=base_hash(find_base(evaluation.base)),
        versions={
            "bishare": __version__,
            "lm-evaluation-harness": version("lm_eval"),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        dtype=evaluation.dtype,
        device=evaluation.device,
        batch_size=options.batch_size,
        seconds=round(evaluation.seconds, 1),
        num_questions=count_questions(evaluation.results, suite, local=local),
        scores=read_scores(evaluation.results, suite, local=local),
        base_scores=base_scores,
        published=published,
        subtasks=read_subtasks(evaluation.results, suite),
    )


def _cells(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, scores in percent."""
    metrics = _metrics_of(report.scores)
    head = ["task", "n"]
    for metric in metrics:
        head += [f"base {metric}", metric] if report.base_scores else [metric]
    head += [row.name for row in report.published]
    return head, [_row(report, name, metrics) for name in report.scores]


def _metrics_of(scores: Scores) -> list[str]:
    """Every metric of any row, in the order of first appearance."""
    metrics: dict[str, None] = {}
    for of_row in scores.values():
        metrics |= dict.fromkeys(of_row)
    return list(metrics)


def _row(report: Report, name: str, metrics: Sequence[str]) -> list[str]:
    # The average has no questions of its own.
    num_questions = f"{report.num_questions[name]:,}" if name in report.num_questions else ""
    cells = [name, num_questions]
    for metric in metrics:
        if report.base_scores:
            cells.append(_cell(report.base_scores[name].get(metric)))
        cells.append(_cell(report.scores[name].get(metric)))
    for row in report.published:
        scores = dict(zip(TASKS, row.scores, strict=True))
        scores[AVERAGE] = sum(row.scores) / len(row.scores)
        cells.append(f"{scores[name]:.2f}")
    return cells


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    value = f"{100 * score.value:.1f}"
    return value if score.stderr is None else f"{value} ± {100 * score.stderr:.1f}"


def _facts(report: Report) -> list[str]:
    """A line each about data, adapter, base, machine and table."""
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
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
        facts.append("published: one seed; the source does not tell acc from acc_norm")
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
    for place, cells in enumerate(rows, start=1):
        # A line sets the last row apart: the average, or the whole of MMLU.
        table.add_row(*map(escape, cells), end_section=place == len(rows) - 1)
    rich.get_console().print(table)


def save(report: Report, samples: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write ``SUITE-Nshot.json``, ``.md`` and ``.samples.jsonl``; a number in the name keeps earlier files.

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
    # Last, since a later evaluation takes the JSON as the sign of a complete set.
    write_text(folder / f"{stem}.json", json.dumps(content, indent=1) + "\n")
    return folder / f"{stem}.md"
