"""Pictures of similarity, the adapter's beside that of random factors: bars within layers, maps across layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bishare.analysis.similarity.layers import ALL, Maps, Similarity

RANDOM = "random factors"
PANEL = 2.5  # inches


class Measure(NamedTuple):
    """How one of the maps is drawn."""

    title: str
    colours: str
    unrelated: float | None = None
    """The value between unrelated updates, for the middle of the colours."""
    shows_diagonal: bool = False
    """Whether a layer beside itself says something; elsewhere it is 0 or 1, beside which all others look alike."""


MEASURES = {
    "joint_entropy": Measure("joint entropy, nats", "viridis", shows_diagonal=True),
    "rmi": Measure("relative mutual\ninformation", "viridis"),
    "cka": Measure("linear CKA", "viridis"),
    "cosine": Measure("cosine", "RdBu_r", unrelated=0.0),
    "relative": Measure("relative effective\ndistance", "RdBu", unrelated=math.sqrt(2)),
}


def bars_within(mine: Similarity, random: Similarity, *, title: str) -> Figure:
    """The mean similarity of the updates in each layer, as in the left half of Figure 1.

    Args:
        mine: Of the adapter.
        random: Of random factors of the same spread.
        title: Above the picture.
    """
    panels = {
        "relative mutual information": (mine.within_rmi, random.within_rmi),
        "linear CKA": (mine.within_cka, random.within_cka),
    }
    figure = _figure(max(len(mine.layers) * 0.2 + 1.6, 4.5), 4.8, title)
    axes = figure.subplots(2, 1, sharex=True)
    places = range(len(mine.layers))
    for axis, (name, (values, null)) in zip(axes, panels.items(), strict=True):
        axis.bar(places, list(values.values()), color="tab:blue", width=0.8, label="adapter")
        axis.plot(places, list(null.values()), "_", color="black", markersize=9, markeredgewidth=1.6, label=RANDOM)
        shown = [value for value in (*values.values(), *null.values()) if math.isfinite(value)]
        if shown and min(shown) > 0.5:  # near 1 all bars would look alike
            top = max(1.0, *shown)
            axis.set_ylim(min(shown) - 0.25 * (top - min(shown)) - 1e-3, top + 1e-3)
        axis.set_ylabel(f"{name},\nmean over pairs", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    axes[0].legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    _number_layers(axes[1].xaxis, mine.layers)
    axes[1].set_xlabel("layer", fontsize=9)
    return figure


def maps_across(mine: Similarity, random: Similarity, *, title: str) -> Figure:
    """Every measure of all pairs of whole layers, as in the right half of Figure 1.

    Args:
        mine: Of the adapter.
        random: Of random factors of the same spread.
        title: Above the picture.
    """
    columns = {name: (mine.across[ALL], random.across[ALL], name) for name in MEASURES}
    return _grid(columns, mine.layers, title)


def maps_of_kinds(mine: Similarity, random: Similarity, measure: str, *, title: str) -> Figure:
    """One measure of all pairs of layers, for each kind of weight.

    Args:
        mine: Of the adapter.
        random: Of random factors of the same spread.
        measure: One of ``MEASURES``.
        title: Above the picture.
    """
    columns = {kind: (mine.across[kind], random.across[kind], measure) for kind in mine.kinds}
    return _grid(columns, mine.layers, title)


def _grid(columns: Mapping[str, tuple[Maps, Maps, str]], layers: Sequence[int], title: str) -> Figure:
    """A column for each name, the adapter above random factors on the same colours."""
    figure = _figure(len(columns) * (PANEL + 0.35) + 0.4, 2 * PANEL + 0.9, title)
    grid = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
    drawn = {name: [_shown(maps, key) for maps in pair] for name, (*pair, key) in columns.items()}
    for (name, (_, _, key)), axes in zip(columns.items(), grid.T, strict=True):
        measure, shown = MEASURES[key], drawn[name]
        # One scale for all columns of a measure.
        low, high = _limits([map_ for other in columns if columns[other][2] == key for map_ in drawn[other]], measure)
        for axis, values in zip(axes, shown, strict=True):
            image = axis.imshow(values, cmap=measure.colours, vmin=low, vmax=high, interpolation="nearest")
            axis.set_facecolor("0.85")
        axes[0].set_title(measure.title if name == key else name.rsplit(".", 1)[-1], fontsize=9)
        colorbar = figure.colorbar(image, ax=list(axes), location="bottom", fraction=0.04, pad=0.02, shrink=0.85)
        colorbar.ax.tick_params(labelsize=7)
        colorbar.locator = MaxNLocator(nbins=4)
        colorbar.update_ticks()
    for axis, whose in zip(grid[:, 0], ("adapter", RANDOM), strict=True):
        axis.set_ylabel(f"{whose}\nlayer", fontsize=9)
        _number_layers(axis.yaxis, layers)
    for axis in grid[1]:
        axis.set_xlabel("layer", fontsize=8)
        _number_layers(axis.xaxis, layers)
    for axis in grid.flat:
        axis.tick_params(labelsize=7, length=2)
    return figure


def _shown(maps: Maps, key: str) -> Tensor:
    values: Tensor = getattr(maps, key)
    return values if MEASURES[key].shows_diagonal else values.clone().fill_diagonal_(torch.nan)


def _limits(maps: Sequence[Tensor], measure: Measure) -> tuple[float, float]:
    values = torch.cat([map_.flatten() for map_ in maps])
    values = values[values.isfinite()]
    if not len(values):
        return 0.0, 1.0
    low, high = values.min().item(), values.max().item()
    if measure.unrelated is not None:
        farthest = max(measure.unrelated - low, high - measure.unrelated)
        low, high = measure.unrelated - farthest, measure.unrelated + farthest
    return low, high


def _number_layers(axis: Any, layers: Sequence[int]) -> None:
    """Name the layers at some of the places 0, 1, 2, ..."""
    step = -(-len(layers) // 8)
    places = range(0, len(layers), step)
    axis.set_ticks(list(places), [str(layers[place]) for place in places])


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)  # draws without a display and leaves pyplot's state alone
    figure.suptitle(title, fontsize=11)
    return figure
