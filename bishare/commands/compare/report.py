"""The table of a comparison in Markdown and JSON, and the plot of score against parameters."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bishare.commands.compare.comparison import Comparison
from bishare.commands.compare.runs import Result
from bishare.files import write_text


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task: its runs with the best learning rate, one for each seed."""

    task: str
    method: str
    learning_rate: float
    tried: Mapping[float, float | None]
    """Scores of the first seed by learning rate."""
    results: Sequence[Result]

    @property
    def scores(self) -> list[float]:
        """Those of the seeds that did not diverge."""
        return [r.score for r in self.results if r.score is not None and math.isfinite(r.score)]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation over the seeds; not a number if there is only one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan

    def __str__(self) -> str:
        if not self.scores:
            return "diverged"
        spread = "" if math.isnan(self.sd) else f" ± {self.sd:.3f}"
        lost = len(self.results) - len(self.scores)
        return f"{self.mean:.3f}{spread}" + (f" ({lost} diverged)" if lost else "")


def write_report(comparison: Comparison, cells: Sequence[Cell], *, options: Sequence[str]) -> list[Path]:
    """Write ``results.md``, ``results.json`` and ``results.png`` into the comparison's folder."""
    folder = comparison.folder
    files = [folder / f"results.{kind}" for kind in ("md", "json", "png")]
    write_text(files[0], markdown(comparison, cells))
    content = {
        "metric": comparison.metric,
        "goal": "max" if comparison.is_max else "min",
        "options": list(options),
        "cells": [asdict(cell) | {"mean": _number(cell.mean), "sd": _number(cell.sd)} for cell in cells],
    }
    write_text(files[1], json.dumps(content, indent=1) + "\n")
    plot(comparison, cells, files[2])
    return files


def markdown(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """Two tables: scores with costs, and the learning rates."""
    tasks, methods = list(comparison.tasks), comparison.methods
    of = {(cell.method, cell.task): cell for cell in cells}
    several = len(tasks) > 1
    head = ["method", "parameters", *(tasks if several else [comparison.metric])]
    head += ["mean"] if several else []
    rows, rates = [], []
    for name, method in methods.items():
        found = [of[name, task] for task in tasks if (name, task) in of]
        done = [r for cell in found for r in cell.results if r.score is not None]
        if not found:
            continue
        scores = [str(of[name, task]) if (name, task) in of else "" for task in tasks]
        mean = [f"{statistics.fmean(c.mean for c in found):.3f}" if len(found) == len(tasks) else ""] if several else []
        seconds = f"{statistics.fmean(r.seconds for r in done):,.0f}" if done else ""
        memory = f"{max(r.peak_gib for r in done):.2f}" if done else ""
        rows.append([method.label, _parameters(done), *scores, *mean, seconds, memory])
        rates.append([method.label, *(_rates(of[name, task]) if (name, task) in of else "" for task in tasks)])
    results = [r for cell in cells for r in cell.results if r.score is not None]
    steps = sorted({r.steps for r in results})
    heads = sorted({r.head for r in results if r.head})
    notes = [
        f"{comparison.metric} ({'higher' if comparison.is_max else 'lower'} is better), mean ± standard deviation over "
        f"seeds {', '.join(map(str, comparison.seeds))}, which draw initial values and dropout; every method sees the "
        "same examples in the same order. Time is that of the training steps, memory the peak of the process.",
        f"Optimizer steps: {', '.join(f'{n:,}' for n in steps)}."
        + (
            f" Heads trained in full beside the adapters, not counted: {', '.join(f'{n:,}' for n in heads)}."
            if heads
            else ""
        ),
    ]
    tried = "The learning rates, chosen on the first seed by the same validation data, with all that were tried:"
    tables = [_table([*head, "seconds", "GiB"], rows), tried, _table(["method", *tasks], rates)]
    return "\n\n".join([*notes, *tables]) + "\n"


def _parameters(results: Sequence[Result]) -> str:
    counts = sorted({r.parameters for r in results})
    return " to ".join(f"{n:,}" for n in ([counts[0], counts[-1]] if len(counts) > 1 else counts))


def _rates(cell: Cell) -> str:
    tried = ", ".join(f"{rate:g}: {'diverged' if s is None else f'{s:.3f}'}" for rate, s in cell.tried.items())
    return f"{cell.learning_rate:g} ({tried})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def plot(comparison: Comparison, cells: Sequence[Cell], file: Path) -> None:
    """Score against parameters, a panel for each task, with the standard deviation over seeds as bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    tasks = list(comparison.tasks)
    columns = min(2, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(5 * columns + 1.5, 3.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    counts = [r.parameters for cell in cells for r in cell.results if r.score is not None]
    for panel, task in zip(panels, tasks, strict=False):
        for number, (name, method) in enumerate(comparison.methods.items()):
            cell = next((c for c in cells if (c.method, c.task) == (name, task) and c.scores), None)
            if cell is None:
                continue
            parameters = next(r.parameters for r in cell.results if r.score is not None)
            spread = None if math.isnan(cell.sd) else cell.sd
            style = {"marker": "o^sDvP*X"[number % 8], "color": f"C{number % 10}", "capsize": 3}
            panel.errorbar([parameters], [cell.mean], yerr=spread, label=method.label, **style)
        panel.set_xscale("log")
        if counts:
            panel.set_xlim(min(counts) / 1.5, max(counts) * 1.5)
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("trained parameters")
        panel.set_ylabel(comparison.metric)
        panel.set_title(task if len(tasks) > 1 else "")
        panel.grid(visible=True, alpha=0.3)
    handles = {label: h for p in figure.axes for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
    figure.savefig(file, dpi=120)
