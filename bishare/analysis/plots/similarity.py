"""Pictures of similarity, the adapter beside random factors: bars within layers, maps across layers.

Zhou et al., "Bi-Share LoRA", ICML 2025, Figure 1.

Shapes: n layers; a map is [n, n].
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bishare.analysis.plots.figure import new_figure
from bishare.analysis.similarity.layers import ALL, Maps, Similarity

RANDOM = "random factors"
PANEL = 2.5  # inches
DPI = 120


class Measure(NamedTuple):
    """Drawing options of a map."""

    title: str
    colours: str
    unrelated: float | None = None
    """Value between unrelated updates, in the middle of the colours."""
    shows_diagonal: bool = False
    """Whether the diagonal is drawn. A diagonal of zeros or ones only stretches the colours and is left out."""


MEASURES = {
    "joint_entropy": Measure("joint entropy, nats", "viridis", shows_diagonal=True),
    "rmi": Measure("relative mutual\ninformation", "viridis"),
    "cka": Measure("linear CKA", "viridis"),
    "cosine": Measure("cosine", "RdBu_r", unrelated=0.0),
    "relative": Measure("relative effective\ndistance", "RdBu", unrelated=math.sqrt(2)),
}


def bars_within(mine: Similarity, random: Similarity, *, title: str) -> Figure:
    """Draw the mean similarity of the updates in each layer, as in the left half of Figure 1.

    Args:
        mine: Similarity of the adapter.
        random: Similarity of random factors of the same spread.
        title: Text above the picture.
    """
    panels = {
        "relative mutual information": (mine.within_rmi, random.within_rmi),
        "linear CKA": (mine.within_cka, random.within_cka),
    }
    figure = new_figure(max(len(mine.layers) * 0.2 + 1.6, 4.5), 4.8, title, dpi=DPI)
    axes = figure.subplots(2, 1, sharex=True)
    places = range(len(mine.layers))
    for axis, (name, (values, null)) in zip(axes, panels.items(), strict=True):
        axis.bar(places, list(values.values()), color="tab:blue", width=0.8, label="adapter")
        axis.plot(places, list(null.values()), "_", color="black", markersize=9, markeredgewidth=1.6, label=RANDOM)
        shown = list(filter(math.isfinite, (*values.values(), *null.values())))
        if shown and min(shown) > 0.5:  # near 1, bars from 0 would all look alike
            top = max(1.0, *shown)
            axis.set_ylim(min(shown) - 0.25 * (top - min(shown)) - 1e-3, top + 1e-3)
        axis.set_ylabel(f"{name},\nmean over pairs", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    axes[0].legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    _label_layers(axes[1].xaxis, mine.layers)
    axes[1].set_xlabel("layer", fontsize=9)
    return figure


def maps_across(mine: Similarity, random: Similarity, *, title: str) -> Figure:
    """Draw every measure of all pairs of whole layers, as in the right half of Figure 1.

    Args:
        mine: Similarity of the adapter.
        random: Similarity of random factors of the same spread.
        title: Text above the picture.
    """
    columns = [_Column(MEASURES[key].title, key, mine.across[ALL], random.across[ALL]) for key in MEASURES]
    return _grid(columns, mine.layers, title)


def maps_of_kinds(mine: Similarity, random: Similarity, measure: str, *, title: str) -> Figure:
    """Draw a measure of all pairs of layers, for each kind of weight.

    Args:
        mine: Similarity of the adapter.
        random: Similarity of random factors of the same spread.
        measure: A key of ``MEASURES``.
        title: Text above the picture.
    """
    columns = []
    for kind in mine.kinds:
        columns.append(_Column(kind.rsplit(".", 1)[-1], measure, mine.across[kind], random.across[kind]))
    return _grid(columns, mine.layers, title)


class _Column(NamedTuple):
    """The maps of a measure, the adapter's and those of random factors."""

    title: str
    measure: str
    mine: Maps
    random: Maps

    def shown(self) -> tuple[Tensor, Tensor]:
        return _shown(self.mine, self.measure), _shown(self.random, self.measure)


def _grid(columns: Sequence[_Column], layers: Sequence[int], title: str) -> Figure:
    """A column of two panels each, the adapter above random factors, in the same colours."""
    figure = new_figure(len(columns) * (PANEL + 0.35) + 0.4, 2 * PANEL + 0.9, title, dpi=DPI)
    grid = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
    # Columns of the same measure have the same scale.
    of_measure: dict[str, list[Tensor]] = defaultdict(list)
    for column in columns:
        of_measure[column.measure] += column.shown()
    for column, axes in zip(columns, grid.T, strict=True):
        measure = MEASURES[column.measure]
        low, high = _limits(of_measure[column.measure], measure)
        for axis, values in zip(axes, column.shown(), strict=True):
            image = axis.imshow(values, cmap=measure.colours, vmin=low, vmax=high, interpolation="nearest")
            axis.set_facecolor("0.85")  # shows where a value is missing
        axes[0].set_title(column.title, fontsize=9)
        colorbar = figure.colorbar(image, ax=list(axes), location="bottom", fraction=0.04, pad=0.02, shrink=0.85)
        colorbar.ax.tick_params(labelsize=7)
        colorbar.locator = MaxNLocator(nbins=4)
        colorbar.update_ticks()
    for axis, name in zip(grid[:, 0], ("adapter", RANDOM), strict=True):
        axis.set_ylabel(f"{name}\nlayer", fontsize=9)
        _label_layers(axis.yaxis, layers)
    for axis in grid[1]:
        axis.set_xlabel("layer", fontsize=8)
        _label_layers(axis.xaxis, layers)
    for axis in grid.flat:
        axis.tick_params(labelsize=7, length=2)
    return figure


def _shown(maps: Maps, key: str) -> Tensor:
    """The values of a measure [n, n], not a number on a diagonal that is left out."""
    values: Tensor = getattr(maps, key)
    if MEASURES[key].shows_diagonal:
        return values
    return values.clone().fill_diagonal_(torch.nan)


def _limits(maps: Sequence[Tensor], measure: Measure) -> tuple[float, float]:
    """The lowest and highest value of the colours."""
    values = torch.cat(list(map(torch.flatten, maps)))
    values = values[values.isfinite()]
    if not len(values):  # nothing to draw: any limits will do
        return 0.0, 1.0
    low, high = values.min().item(), values.max().item()
    if measure.unrelated is not None:  # symmetric around the value of unrelated updates
        farthest = max(measure.unrelated - low, high - measure.unrelated)
        low, high = measure.unrelated - farthest, measure.unrelated + farthest
    return low, high


def _label_layers(axis: Any, layers: Sequence[int]) -> None:
    """Write the numbers of at most eight layers at the ticks."""
    step = -(-len(layers) // 8)
    axis.set_ticks(list(range(0, len(layers), step)), list(map(str, layers[::step])))
