"""Pictures of what was logged: curves over optimizer steps, and scores of tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANEL_WIDTH, PANEL_HEIGHT = 3.6, 2.6  # inches
PER_ROW = 3


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], *, title: str) -> Figure:
    """Draw panels of named curves over optimizer steps.

    Args:
        panels: By the panel's name and the curve's name, pairs of step and value.
        title: Above the picture.
    """
    per_row = min(len(panels), PER_ROW)
    num_rows = -(-len(panels) // per_row)
    figure = _figure(per_row * PANEL_WIDTH + 0.4, num_rows * PANEL_HEIGHT + 0.6, title)
    axes = list(figure.subplots(num_rows, per_row, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        for label, points in lines.items():
            marker = "o" if len(points) < 20 else None
            axis.plot([x for x, _ in points], [y for _, y in points], label=label, marker=marker, markersize=3)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(color="0.92")
        if len(lines) > 1:
            axis.legend(fontsize=8, frameon=False)
    return figure


def score_bars(evaluation: Mapping[str, Any]) -> Figure:
    """Draw the scores of one evaluation, with their standard errors, the base model's beside them where it has any.

    Args:
        evaluation: What ``evaluate`` wrote as JSON. Of a task's metrics the last is drawn (``acc_norm`` before
            ``acc``).
    """
    models = {"adapter": evaluation["scores"], "base": evaluation["base_scores"]}
    models = {name: scores for name, scores in models.items() if scores}
    tasks = list(evaluation["scores"])
    figure = _figure(
        len(tasks) * 0.8 + 1.6, 3.4, f"{evaluation['suite']}, {evaluation['shots']}-shot ({evaluation['data']})"
    )
    axis = figure.subplots()
    width = 0.8 / len(models)
    for place, (model, scores) in enumerate(models.items()):
        chosen = [list(scores[task].values())[-1] for task in tasks]
        axis.bar(
            [x + place * width for x in range(len(tasks))],
            [100 * score["value"] for score in chosen],
            width=width * 0.92,
            yerr=[100 * (score["stderr"] or 0.0) for score in chosen],
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
    """Draw the distances of all pairs of some layers' Bs.

    Args:
        distances: Symmetric, [n, n].
        layers: Their n numbers.
        title: Above the picture.
    """
    side = max(len(layers) * 0.22, 2.4)
    figure = _figure(side + 1.4, side + 0.8, title)
    axis = figure.subplots()
    # Without the zeros of the diagonal, beside which all others look alike.
    others = [[d if i != j else float("nan") for j, d in enumerate(row)] for i, row in enumerate(distances)]
    image = axis.imshow(others, cmap="viridis")
    axis.set_xticks(range(len(layers)), [str(layer) for layer in layers], fontsize=7)
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=7)
    axis.set_xlabel("layer", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03).ax.tick_params(labelsize=8)
    return figure


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)  # draws without a display and leaves pyplot's state alone
    figure.suptitle(title, fontsize=11)
    return figure
