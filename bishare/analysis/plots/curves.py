"""Pictures of a run: curves over optimizer steps, scores of tasks, distances of layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from bishare.analysis.plots.figure import new_figure

PANEL_WIDTH, PANEL_HEIGHT = 3.6, 2.6  # inches
PER_ROW = 3
FEW_POINTS = 20
"""A curve with fewer points is drawn with markers."""


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], *, title: str) -> Figure:
    """Draw panels of named curves over optimizer steps.

    Args:
        panels: Pairs of step and value, by the name of the panel and the name of the curve.
        title: Text above the picture.
    """
    per_row = min(len(panels), PER_ROW)
    num_rows = -(-len(panels) // per_row)
    figure = new_figure(per_row * PANEL_WIDTH + 0.4, num_rows * PANEL_HEIGHT + 0.6, title)
    axes = list(figure.subplots(num_rows, per_row, squeeze=False).flat)
    for axis in axes[len(panels) :]:  # the rest of the last row
        axis.set_visible(False)
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        for label, points in lines.items():
            steps, values = zip(*points, strict=True) if points else ((), ())
            marker = "o" if len(points) < FEW_POINTS else None
            axis.plot(steps, values, label=label, marker=marker, markersize=3)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(color="0.92")
        if len(lines) > 1:
            axis.legend(fontsize=8, frameon=False)
    return figure


def score_bars(evaluation: Mapping[str, Any]) -> Figure:
    """Draw the scores of an evaluation with their standard errors, beside the base model's if there are any.

    Args:
        evaluation: The JSON report of ``evaluate``. The last metric of each task is drawn (``acc_norm`` before
            ``acc``).
    """
    models = {"adapter": evaluation["scores"], "base": evaluation["base_scores"]}
    models = {name: scores for name, scores in models.items() if scores}
    tasks = list(evaluation["scores"])
    title = f"{evaluation['suite']}, {evaluation['shots']}-shot ({evaluation['data']})"
    figure = new_figure(len(tasks) * 0.8 + 1.6, 3.4, title)
    axis = figure.subplots()
    width = 0.8 / len(models)  # the bars of a task fill 0.8 of its room
    for place, (model, scores) in enumerate(models.items()):
        heights, errors = [], []
        for task in tasks:
            score = list(scores[task].values())[-1]
            heights.append(100 * score["value"])
            errors.append(100 * (score["stderr"] or 0.0))
        axis.bar(
            [x + place * width for x in range(len(tasks))],
            heights,
            width=width * 0.92,
            yerr=errors,
            label=model,
            color=("tab:blue", "0.75")[place],
            error_kw={"elinewidth": 1},
        )
    axis.set_xticks([x + 0.4 - width / 2 for x in range(len(tasks))], tasks, rotation=30, ha="right", fontsize=8)
    axis.set_ylabel("percent correct, ± one standard error", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    return figure


def distance_map(distances: Sequence[Sequence[float]], layers: Sequence[int], *, title: str) -> Figure:
    """Draw the distances between the B matrices of all pairs of layers.

    Args:
        distances: Symmetric, [n, n].
        layers: Numbers of the n layers.
        title: Text above the picture.
    """
    side = max(len(layers) * 0.22, 2.4)
    figure = new_figure(side + 1.4, side + 0.8, title)
    axis = figure.subplots()
    # The zeros of the diagonal would stretch the colours, and all distances would look alike.
    off_diagonal = torch.tensor(distances, dtype=torch.float64).fill_diagonal_(torch.nan)
    image = axis.imshow(off_diagonal, cmap="viridis")
    axis.set_xticks(range(len(layers)), list(map(str, layers)), fontsize=7)
    axis.set_yticks(range(len(layers)), list(map(str, layers)), fontsize=7)
    axis.set_xlabel("layer", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03).ax.tick_params(labelsize=8)
    return figure
