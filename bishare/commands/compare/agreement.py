"""Agreement of merged runs on the layers that share a B: the adjusted Rand index of the groupings, and a plot.

Hubert & Arabie, "Comparing partitions", 1985: 1 for the same groups, 0 for an agreement by chance, below 0 for less.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.clustering import adjusted_rand_score

from bishare.commands.compare.comparison import Comparison
from bishare.commands.compare.report import Cell
from bishare.commands.compare.runs import Sharing
from bishare.files import write_text


def agreement(first: Sharing, second: Sharing) -> float:
    """Mean adjusted Rand index over common groups of weights, each on the common layers.

    Args:
        first: By group of weights, the owner of the B of each layer.
        second: The same of another run.

    Returns:
        Not a number for runs without two common layers in any group.
    """
    scores = []
    for group in first.keys() & second.keys():
        layers = sorted(first[group].keys() & second[group].keys(), key=int)
        # One layer alone is grouped alike in any run.
        if len(layers) >= 2:
            score = adjusted_rand_score(_owners(first[group], layers), _owners(second[group], layers))
            scores.append(float(score))
    return statistics.fmean(scores) if scores else math.nan


def _owners(owner_of: Mapping[str, int], layers: Sequence[str]) -> Tensor:
    """The owner of each layer's B [layers]."""
    return torch.tensor([owner_of[layer] for layer in layers])


def agreements(cells: Sequence[Cell]) -> list[list[float]]:
    """Mean agreement [n, n] of all pairs of methods, seed by seed; on the diagonal the agreement between seeds."""
    return [_row_of_agreements(cell, cells) for cell in cells]


def _row_of_agreements(cell: Cell, cells: Sequence[Cell]) -> list[float]:
    row = []
    for other in cells:
        first, second = _sharings(cell), _sharings(other)
        pairs = combinations(first, 2) if other is cell else zip(first, second, strict=False)
        row.append(_mean(agreement(*pair) for pair in pairs))
    return row


def _sharings(cell: Cell) -> list[Sharing]:
    """Of each run of a method; empty for a run that diverged."""
    return [result.sharing for result in cell.results]


def write_agreement(comparison: Comparison, cells: Sequence[Cell]) -> list[Path]:
    """Write ``sharing.json`` and ``sharing.png`` if some runs merged layers."""
    merged: dict[str, list[Cell]] = {}
    for cell in cells:
        if any(result.sharing for result in cell.results):
            merged.setdefault(cell.task, []).append(cell)
    if not merged:
        return []
    found = {task: agreements(of_task) for task, of_task in merged.items()}
    numbers, picture = comparison.folder / "sharing.json", comparison.folder / "sharing.png"
    content = {}
    for task, of_task in merged.items():
        methods = [cell.method for cell in of_task]
        content[task] = {"methods": methods, "adjusted_rand": [_finite(row) for row in found[task]]}
    write_text(numbers, json.dumps(content, indent=1) + "\n")
    plot(comparison, merged, found, picture)
    return [numbers, picture]


def plot(
    comparison: Comparison,
    cells: Mapping[str, Sequence[Cell]],
    found: Mapping[str, Sequence[Sequence[float]]],
    file: Path,
) -> None:
    """Draw a row for each task: the agreement of the methods, and the scores of the seeds."""
    from bishare.analysis.plots.figure import new_figure

    most = max(len(of_task) for of_task in cells.values())
    figure = new_figure(0.42 * most + 8.2, (0.3 * most + 2.4) * len(cells), dpi=120)
    panels = figure.subplots(len(cells), 2, squeeze=False, width_ratios=(0.42 * most + 2.0, 4.5))
    for (left, right), (task, of_task) in zip(panels, cells.items(), strict=True):
        labels = [comparison.methods[cell.method].label for cell in of_task]
        image = _draw_agreements(left, found[task], labels)
        title = f"{task}: " if len(comparison.tasks) > 1 else ""
        left.set_title(f"{title}agreement of sharing maps (diagonal: between seeds)", fontsize=9)
        figure.colorbar(image, ax=left, label="adjusted Rand index", fraction=0.05, pad=0.02)
        _draw_scores(right, of_task, labels)
        right.set_xlabel(f"{comparison.metric} of each seed, and the mean", fontsize=9)
    figure.savefig(file)


def _draw_agreements(axis: Any, found: Sequence[Sequence[float]], labels: Sequence[str]) -> Any:
    """Draw a map of the agreements [n, n], each with its number.

    Returns:
        The image, for a colour bar.
    """
    places = range(len(labels))
    image = axis.imshow(found, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
    axis.set_xticks(places, labels, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(places, labels, fontsize=8)
    for y, row in enumerate(found):
        for x, value in enumerate(row):
            if math.isfinite(value):
                colour = "black" if value > 0.6 else "white"
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    return image


def _draw_scores(axis: Any, cells: Sequence[Cell], labels: Sequence[str]) -> None:
    """Draw the scores of each method as dots, the mean as a stroke."""
    for y, cell in enumerate(cells):
        axis.plot(cell.scores, [y] * len(cell.scores), "o", color="tab:blue", markersize=5, alpha=0.7)
        axis.plot([cell.mean], [y], "|", color="black", markersize=14, markeredgewidth=1.5)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(color="0.92")


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _finite(row: Sequence[float]) -> list[float | None]:
    """None in the place of not a number, as JSON has no other word."""
    return [value if math.isfinite(value) else None for value in row]
