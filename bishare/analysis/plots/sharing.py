"""Pictures of merging: which layer's B every layer uses, and the order in which layers became one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COLOURS = "tab20"
ALONE = "0.93"  # a layer that shares with none
CELL_WIDTH, CELL_HEIGHT = 0.75, 0.26  # inches


class Tie(NamedTuple):
    """One merge of a group, in numbers of layers."""

    step: int
    lower: int
    upper: int


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)  # draws without a display and leaves pyplot's state alone
    figure.suptitle(title, fontsize=11)
    return figure


def sharing_map(owners: Mapping[str, Mapping[int, int]], *, title: str) -> Figure:
    """Layers down, groups across; each cell names the layer whose B is used, and layers that share have one colour.

    Args:
        owners: For every group, the layer whose B each layer uses.
        title: Above the picture.
    """
    layers = sorted({layer for of_group in owners.values() for layer in of_group})
    figure = _figure(len(owners) * CELL_WIDTH + 1.2, len(layers) * CELL_HEIGHT + 1.5, title)
    axis = figure.subplots()
    palette = colormaps[COLOURS]
    for x, of_group in enumerate(owners.values()):
        shared = sorted(root for root in set(of_group.values()) if list(of_group.values()).count(root) > 1)
        for layer, root in of_group.items():
            # dark and light tones alternate in the palette: take the dark ones first
            place = shared.index(root) if root in shared else 0
            colour = palette((2 * place + place // 10) % 20) if root in shared else ALONE
            y = layers.index(layer)
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
            weight = "bold" if root == layer and root in shared else "normal"
            axis.text(x, y, str(root), ha="center", va="center", fontsize=8, weight=weight)
    axis.set_xlim(-0.5, len(owners) - 0.5)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    axis.set_xticks(range(len(owners)), [name.removeprefix("local.") for name in owners])
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axis.tick_params(labelsize=8, length=0)
    axis.set_ylabel("layer")
    axis.set_xlabel("number: the layer whose B is used; grey: its own alone", fontsize=8)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


def merge_tree(groups: Mapping[str, Sequence[int]], ties: Mapping[str, Sequence[Tie]], *, title: str) -> Figure:
    """A panel per group: layers down, optimizer steps across, joined where and when they became one.

    Args:
        groups: The layers of every group.
        ties: Their merges, in order.
        title: Above the picture.
    """
    rows = max(len(layers) for layers in groups.values())
    figure = _figure(len(groups) * 2.0 + 0.8, rows * CELL_HEIGHT + 1.5, title)
    steps = [tie.step for of_group in ties.values() for tie in of_group]
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    margin = 0.15 * (last - first) or 1
    for axis, (name, layers) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        _draw_tree(axis, layers, ties.get(name, ()), first - margin, last + margin)
        axis.set_title(name, fontsize=10)
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel("layer", fontsize=10)
    return figure


def _draw_tree(axis: Any, layers: Sequence[int], ties: Sequence[Tie], left: float, right: float) -> None:
    leaves = {layer: [layer] for layer in layers}  # of each group, by its owner, so ordered that no lines cross
    for tie in ties:
        leaves[tie.upper] = leaves.pop(tie.lower) + leaves[tie.upper]
    order = [layer for of_group in leaves.values() for layer in of_group]
    ends = {layer: (left, float(y)) for y, layer in enumerate(order)}  # where each group's line has got to
    for tie in ties:
        (x0, y0), (x1, y1) = ends.pop(tie.lower), ends[tie.upper]
        axis.plot([x0, tie.step, tie.step, x1], [y0, y0, y1, y1], color="tab:blue", linewidth=1.2)
        ends[tie.upper] = (tie.step, (y0 + y1) / 2)
    joined = {tie.upper for tie in ties}
    for owner, (x, y) in ends.items():
        axis.plot([x, right], [y, y], color="tab:blue" if owner in joined else "0.75", linewidth=1.2)
    axis.set_xlim(left, right)
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.set_yticks(range(len(order)), [str(layer) for layer in order])
    axis.tick_params(labelsize=8, length=2)
    axis.locator_params(axis="x", nbins=4, integer=True)
