"""How far runs with merging agree on which layers share a B: the adjusted Rand index of their groupings, and its plot.

Hubert & Arabie, "Comparing partitions", 1985: 1 for the same groups, 0 as by chance, below 0 for less than that.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torchmetrics.functional.clustering import adjusted_rand_score

from bishare.commands.compare.comparison import Comparison
from bishare.commands.compare.report import Cell
from bishare.commands.compare.runs import Sharing
from bishare.files import write_text


def agreement(first: Sharing, second: Sharing) -> float:
    """Mean adjusted Rand index over the groups of weights that both have, on the layers that both have.

    Args:
        first: By group of weights, the layer whose B each layer uses.
        second: Of another run.

    Returns:
        Not a number where they have no two layers of a group in common.
    """
    scores = []
    for group in first.keys() & second.keys():
        layers = sorted(first[group].keys() & second[group].keys(), key=int)
        if len(layers) < 2:
            continue
        labels = ([owners[layer] for layer in layers] for owners in (first[group], second[group]))
        scores.append(float(adjusted_rand_score(*(torch.tensor(of_run) for of_run in labels))))
    return statistics.fmean(scores) if scores else math.nan


def agreements(cells: Sequence[Cell]) -> list[list[float]]:
    """Mean agreement [n, n] of all pairs of methods, run by run of one seed; on the diagonal, between seeds."""
    runs = [[result.sharing for result in cell.results] for cell in cells]  # empty where training diverged

    def between(i: int, j: int) -> float:
        pairs = combinations(runs[i], 2) if i == j else zip(runs[i], runs[j], strict=False)
        return _mean(agreement(*pair) for pair in pairs)

    return [[between(i, j) for j in range(len(cells))] for i in range(len(cells))]


def write_agreement(comparison: Comparison, cells: Sequence[Cell]) -> list[Path]:
    """Write ``sharing.json`` and ``sharing.png`` if some runs merged layers."""
    merged: dict[str, list[Cell]] = {}
    for cell in cells:
        if any(result.sharing for result in cell.results):
            merged.setdefault(cell.task, []).append(cell)
    if not merged:
        return []
    found = {task: agreements(of_task) for task, of_task in merged.items()}
    files = [comparison.folder / f"sharing.{kind}" for kind in ("json", "png")]
    content = {
        task: {"methods": [cell.method for cell in merged[task]], "adjusted_rand": _finite(found[task])}
        for task in merged
    }
    write_text(files[0], json.dumps(content, indent=1) + "\n")
    plot(comparison, merged, found, files[1])
    return files


def plot(
    comparison: Comparison,
    cells: Mapping[str, Sequence[Cell]],
    found: Mapping[str, Sequence[Sequence[float]]],
    file: Path,
) -> None:
    """A row for each task: how far the maps agree, and the scores of the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(len(of_task) for of_task in cells.values())
    figure = Figure(figsize=(0.42 * most + 8.2, (0.3 * most + 2.4) * len(cells)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cells), 2, squeeze=False, width_ratios=(0.42 * most + 2.0, 4.5))
    for (left, right), (task, of_task) in zip(panels, cells.items(), strict=True):
        labels = [comparison.methods[cell.method].label for cell in of_task]
        places = range(len(labels))
        image = left.imshow(found[task], cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
        left.set_xticks(places, labels, rotation=45, ha="right", fontsize=8)
        left.set_yticks(places, labels, fontsize=8)
        for y, row in enumerate(found[task]):
            for x, value in enumerate(row):
                if math.isfinite(value):
                    colour = "black" if value > 0.6 else "white"
                    left.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        title = f"{task}: " if len(comparison.tasks) > 1 else ""
        left.set_title(f"{title}agreement of sharing maps (diagonal: between seeds)", fontsize=9)
        figure.colorbar(image, ax=left, label="adjusted Rand index", fraction=0.05, pad=0.02)
        for y, cell in enumerate(of_task):
            right.plot(cell.scores, [y] * len(cell.scores), "o", color="tab:blue", markersize=5, alpha=0.7)
            right.plot([cell.mean], [y], "|", color="black", markersize=14, markeredgewidth=1.5)
        right.set_yticks(places, labels, fontsize=8)
        right.set_ylim(len(labels) - 0.5, -0.5)
        right.tick_params(axis="x", labelsize=8)
        right.grid(color="0.92")
        right.set_xlabel(f"{comparison.metric} of each seed, and the mean", fontsize=9)
    figure.savefig(file)


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _finite(rows: Sequence[Sequence[float]]) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in rows]
