"""The results of a comparison: tables in Markdown, the same in JSON, and a plot of score against parameters."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bishare.commands.compare.comparison import Comparison, Method
from bishare.commands.compare.runs import Result
from bishare.files import write_text


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task: the runs with the best learning rate, one run for each seed."""

    task: str
    method: str
    learning_rate: float
    tried: Mapping[float, float | None]
    """Scores of the first seed by learning rate."""
    results: Sequence[Result]

    @property
    def scores(self) -> list[float]:
        """Scores of the seeds, without diverged runs."""
        return [r.score for r in self.results if r.score is not None and math.isfinite(r.score)]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation over the seeds; not a number for a single score."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan

    def __str__(self) -> str:
        if not self.scores:
            return "diverged"
        text = f"{self.mean:.3f}"
        if not math.isnan(self.sd):
            text += f" ± {self.sd:.3f}"
        num_diverged = len(self.results) - len(self.scores)
        if num_diverged:
            text += f" ({num_diverged} diverged)"
        return text


def write_report(comparison: Comparison, cells: Sequence[Cell], *, options: Sequence[str]) -> list[Path]:
    """Write ``results.md``, ``results.json`` and ``results.png`` into the comparison's folder."""
    tables, numbers, picture = (comparison.folder / f"results.{kind}" for kind in ("md", "json", "png"))
    write_text(tables, markdown(comparison, cells))
    content = {
        "metric": comparison.metric,
        "goal": "max" if comparison.is_max else "min",
        "options": list(options),
        "cells": [asdict(cell) | {"mean": _number(cell.mean), "sd": _number(cell.sd)} for cell in cells],
    }
    write_text(numbers, json.dumps(content, indent=1) + "\n")
    plot(comparison, cells, picture)
    return [tables, numbers, picture]


def markdown(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """Notes and two tables: scores with costs, and the learning rates."""
    tasks = list(comparison.tasks)
    by_method: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, {})[cell.task] = cell
    scores, rates = [], []
    for name, method in comparison.methods.items():
        # A method without a finished task has no row yet.
        if name in by_method:
            scores.append([method.label, *_score_row(by_method[name], tasks)])
            rates.append([method.label, *_rate_row(by_method[name], tasks)])
    blocks = [
        _score_note(comparison),
        _step_note(cells),
        _table(_score_head(comparison), scores),
        "The learning rates, chosen on the first seed by the same validation data, with all that were tried:",
        _table(["method", *tasks], rates),
    ]
    return "\n\n".join(blocks) + "\n"


def _score_head(comparison: Comparison) -> list[str]:
    tasks = list(comparison.tasks)
    columns = [*tasks, "mean"] if len(tasks) > 1 else [comparison.metric]
    return ["method", "parameters", *columns, "seconds", "GiB"]


def _score_row(cells: Mapping[str, Cell], tasks: Sequence[str]) -> list[str]:
    """One method's row behind the label: parameters, scores, costs.

    Args:
        cells: The method's finished cells by task.
        tasks: All tasks, in the order of the columns.
    """
    results = _converged(cells.values())
    row = [_parameters(results)]
    for task in tasks:
        row.append(str(cells[task]) if task in cells else "")
    if len(tasks) > 1:
        # A mean over some of the tasks would stand beside means over all.
        is_complete = len(cells) == len(tasks)
        row.append(f"{statistics.fmean(cell.mean for cell in cells.values()):.3f}" if is_complete else "")
    if not results:
        return [*row, "", ""]
    seconds = statistics.fmean(result.seconds for result in results)
    memory = max(result.peak_gib for result in results)
    return [*row, f"{seconds:,.0f}", f"{memory:.2f}"]


def _rate_row(cells: Mapping[str, Cell], tasks: Sequence[str]) -> list[str]:
    return [_rates(cells[task]) if task in cells else "" for task in tasks]


def _score_note(comparison: Comparison) -> str:
    better = "higher" if comparison.is_max else "lower"
    seeds = ", ".join(map(str, comparison.seeds))
    return (
        f"{comparison.metric} ({better} is better), mean ± standard deviation over seeds {seeds}, which draw initial "
        "values and dropout; every method sees the same examples in the same order. Time is that of the training "
        "steps, memory the peak of the process."
    )


def _step_note(cells: Sequence[Cell]) -> str:
    results = _converged(cells)
    note = f"Optimizer steps: {_distinct(result.steps for result in results)}."
    heads = _distinct(result.head for result in results if result.head)
    if heads:
        note += f" Heads trained in full beside the adapters, not counted: {heads}."
    return note


def _converged(cells: Iterable[Cell]) -> list[Result]:
    found: list[Result] = []
    for cell in cells:
        found += [result for result in cell.results if result.score is not None]
    return found


def _distinct(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:,}" for number in sorted(set(numbers)))


def _parameters(results: Sequence[Result]) -> str:
    """A count, or the smallest and the largest where runs differ."""
    counts = {result.parameters for result in results}
    ends = sorted({min(counts), max(counts)}) if counts else []
    return " to ".join(f"{count:,}" for count in ends)


def _rates(cell: Cell) -> str:
    tried = []
    for rate, score in cell.tried.items():
        shown = "diverged" if score is None else f"{score:.3f}"
        tried.append(f"{rate:g}: {shown}")
    return f"{cell.learning_rate:g} ({', '.join(tried)})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> float | None:
    """None for not a number, as JSON has no other word."""
    return None if math.isnan(value) else value


def plot(comparison: Comparison, cells: Sequence[Cell], file: Path) -> None:
    """Draw score against parameters, a panel for each task, with the standard deviation over seeds as bars."""
    from bishare.analysis.plots.figure import new_figure

    tasks = list(comparison.tasks)
    num_columns = min(2, len(tasks))
    num_lines = math.ceil(len(tasks) / num_columns)
    figure = new_figure(5 * num_columns + 1.5, 3.6 * num_lines)
    panels = figure.subplots(num_lines, num_columns, squeeze=False).flat
    counts = [result.parameters for result in _converged(cells)]
    handles: dict[str, Any] = {}
    for panel, task in zip(panels, tasks, strict=False):
        of_task = {cell.method: cell for cell in cells if cell.task == task and cell.scores}
        handles |= _draw_task(panel, comparison.methods, of_task)
        if counts:
            panel.set_xlim(min(counts) / 1.5, max(counts) * 1.5)
        panel.set_ylabel(comparison.metric)
        panel.set_title(task if len(tasks) > 1 else "")
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
    figure.savefig(file, dpi=120)


def _draw_task(panel: Any, methods: Mapping[str, Method], cells: Mapping[str, Cell]) -> dict[str, Any]:
    """Draw the cells of one task on logarithmic parameters.

    Returns:
        What was drawn, by the label for the legend.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    drawn: dict[str, Any] = {}
    for number, (name, method) in enumerate(methods.items()):
        if name not in cells:
            continue
        cell = cells[name]
        parameters = _converged([cell])[0].parameters
        spread = None if math.isnan(cell.sd) else cell.sd
        style = {"marker": "o^sDvP*X"[number % 8], "color": f"C{number % 10}", "capsize": 3}
        drawn[method.label] = panel.errorbar([parameters], [cell.mean], yerr=spread, **style)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("trained parameters")
    panel.grid(visible=True, alpha=0.3)
    return drawn
