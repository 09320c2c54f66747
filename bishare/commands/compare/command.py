"""``compare``: trains several methods on the same data, steps and seeds, and writes a table and a plot."""

import argparse
import math
import signal
from collections.abc import Sequence
from pathlib import Path

import rich
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bishare.commands.compare.agreement import write_agreement
from bishare.commands.compare.comparison import Comparison, read_comparison
from bishare.commands.compare.matching import count, match
from bishare.commands.compare.report import Cell, markdown, write_report
from bishare.commands.compare.runs import Result, Run, Runner
from bishare.commands.quiet import silence_known_noise


def run(command: str, arguments: Sequence[str]) -> None:
    """Run the command; options of no meaning here go to every ``fit``.

    Raises:
        UserError: For every mistake in the configuration, and when a run fails.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bishare {command}",
        description="Train several methods on the same data, steps and seeds; write results.md, .json and .png.",
        epilog="All other options go to every fit, for example --data.path FOLDER. Finished runs are not trained "
        "again: the same command continues a stopped comparison.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="A configuration of configs/compare.")
    parser.add_argument("--over", type=Path, help="A file laid over the configuration, for example with another base.")
    parser.add_argument("--folder", type=Path, help="Folder for runs and results, instead of the configuration's.")
    parser.add_argument("--match", help="A method or a number of parameters: methods with solve get as many at most.")
    known, options = parser.parse_known_args(list(arguments))
    comparison = read_comparison(known.config, over=known.over, folder=known.folder, match=known.match)
    silence_known_noise()
    # As an exception, a request to terminate also stops the process of the current run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = rich.get_console()
    adapters = match(comparison, options)
    for name, method in comparison.methods.items():
        solved = "".join(f", {option} {value}" for option, value in adapters.get(name, {}).items())
        parameters = count(comparison, name, adapters.get(name), options)
        console.print(f"{method.label}: {parameters:,} parameters{solved}", highlight=False)
    runner = Runner(comparison, options, adapters)
    cells = train(comparison, runner, options)
    console.print(Markdown(markdown(comparison, cells)))
    for file in [*write_report(comparison, cells, options=options), *write_agreement(comparison, cells)]:
        console.print(f"Results: {file}", highlight=False, soft_wrap=True)


def train(comparison: Comparison, runner: Runner, options: Sequence[str]) -> list[Cell]:
    """Train every unfinished run, with a progress bar; write the report after each method and task."""
    cells: list[Cell] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=36000) as progress:
        bar = progress.add_task("", total=comparison.num_runs)

        def execute(run: Run) -> Result:
            is_new = runner.result(run) is None
            progress.update(bar, description=run.name)
            result = runner.execute(run)
            progress.advance(bar)
            if is_new:
                score = "diverged" if result.score is None else f"{comparison.metric} {result.score:.4f}"
                progress.console.print(f"{run.name}: {score}, {result.seconds:,.0f} s", highlight=False)
            return result

        for task in comparison.tasks:
            for name, method in comparison.methods.items():
                # The first seed chooses the learning rate; the others are trained with the best rate alone.
                first, *others = comparison.seeds
                grid = {rate: execute(Run(task, name, rate, first)) for rate in method.learning_rates}
                best = best_rate(grid, is_max=comparison.is_max)
                rest = [execute(Run(task, name, best, seed)) for seed in others]
                tried = {rate: result.score for rate, result in grid.items()}
                results = [grid[best], *rest]
                cells.append(Cell(task=task, method=name, learning_rate=best, tried=tried, results=results))
                write_report(comparison, cells, options=options)
    return cells


def best_rate(grid: dict[float, Result], *, is_max: bool) -> float:
    """The learning rate with the best score; the lowest rate if all diverged."""
    scores = {rate: r.score for rate, r in grid.items() if r.score is not None and math.isfinite(r.score)}
    if not scores:
        return min(grid)
    if is_max:
        return max(scores, key=scores.__getitem__)
    return min(scores, key=scores.__getitem__)
