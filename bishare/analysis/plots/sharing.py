"""Pictures of merging: the layer whose B each layer uses, and the order of the merges."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bishare.analysis.plots.figure import new_figure

PALETTE = "tab20"
ALONE = "0.93"  # a layer with a B of its own
CELL_WIDTH, CELL_HEIGHT = 0.75, 0.26  # inches


class Tie(NamedTuple):
    """A merge of two layers of a group, by numbers of layers; the lower layer then uses the B of the upper layer."""

    step: int
    lower: int
    upper: int


def sharing_map(owners: Mapping[str, Mapping[int, int]], *, title: str) -> Figure:
    """Draw layers down and groups across; a cell names the layer whose B is used, and layers with the same B match.

    Args:
        owners: For every group, the layer whose B each layer uses.
        title: Text above the picture.
    """
    layers = sorted(set[int]().union(*owners.values()))
    figure = new_figure(len(owners) * CELL_WIDTH + 1.2, len(layers) * CELL_HEIGHT + 1.5, title)
    axis = figure.subplots()
    for x, of_group in enumerate(owners.values()):
        uses = Counter(of_group.values())
        shared = sorted(owner for owner, num_layers in uses.items() if num_layers > 1)
        for layer, owner in of_group.items():
            colour, weight = ALONE, "normal"
            if owner in shared:
                colour = _colour(shared.index(owner))
                weight = "bold" if owner == layer else "normal"  # the owner of a shared B stands out
            y = layers.index(layer)
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
            axis.text(x, y, str(owner), ha="center", va="center", fontsize=8, weight=weight)
    axis.set_xlim(-0.5, len(owners) - 0.5)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    axis.set_xticks(range(len(owners)), [name.removeprefix("local.") for name in owners])
    axis.set_yticks(range(len(layers)), list(map(str, layers)))
    axis.tick_params(labelsize=8, length=0)
    axis.set_ylabel("layer")
    axis.set_xlabel("number: the layer whose B is used; grey: its own alone", fontsize=8)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


def _colour(place: int) -> Any:
    # Dark and light tones alternate in the palette: take the dark tones first.
    return colormaps[PALETTE]((2 * place + place // 10) % 20)


def merge_tree(groups: Mapping[str, Sequence[int]], ties: Mapping[str, Sequence[Tie]], *, title: str) -> Figure:
    """Draw a dendrogram of each group: layers down, optimizer steps across, two lines joined at each merge.

    Args:
        groups: Layers of every group.
        ties: Merges of every group, in order.
        title: Text above the picture.
    """
    rows = max(map(len, groups.values()))
    figure = new_figure(len(groups) * 2.0 + 0.8, rows * CELL_HEIGHT + 1.5, title)
    steps = [tie.step for tie in chain(*ties.values())] or [0, 1]
    first, last = min(steps), max(steps)
    margin = 0.15 * (last - first) or 1
    for axis, (name, layers) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        _draw_tree(axis, layers, ties.get(name, ()), first - margin, last + margin)
        axis.set_title(name, fontsize=10)
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel("layer", fontsize=10)
    return figure


def _draw_tree(axis: Any, layers: Sequence[int], ties: Sequence[Tie], left: float, right: float) -> None:
    # Leaves of each subtree, by its owner. Merged subtrees become neighbours, so that no lines cross.
    leaves = {layer: [layer] for layer in layers}
    for tie in ties:
        leaves[tie.upper] = leaves.pop(tie.lower) + leaves[tie.upper]
    order = list(chain(*leaves.values()))
    ends = {layer: (left, float(y)) for y, layer in enumerate(order)}  # the right end of each subtree's line
    for tie in ties:
        (x0, y0), (x1, y1) = ends.pop(tie.lower), ends[tie.upper]
        axis.plot([x0, tie.step, tie.step, x1], [y0, y0, y1, y1], color="tab:blue", linewidth=1.2)
        ends[tie.upper] = (tie.step, (y0 + y1) / 2)
    joined = {tie.upper for tie in ties}
    for owner, (x, y) in ends.items():
        axis.plot([x, right], [y, y], color="tab:blue" if owner in joined else "0.75", linewidth=1.2)
    axis.set_xlim(left, right)
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.set_yticks(range(len(order)), list(map(str, order)))
    axis.tick_params(labelsize=8, length=2)
    axis.locator_params(axis="x", nbins=4, integer=True)
