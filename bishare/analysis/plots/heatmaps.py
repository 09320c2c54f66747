"""Heat maps of a value per weight: layers down, kinds of weights across, a panel for each level."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bishare.analysis.plots.figure import new_figure

CELL_WIDTH, CELL_HEIGHT = 0.55, 0.26  # inches; room for four digits


def heat_map(
    panels: Mapping[str, Mapping[tuple[int, str], float]], *, title: str, kinds: Sequence[str], digits: int
) -> Figure:
    """Draw panels on the same colour scale, from 0 to the largest value, with a number in each cell.

    Args:
        panels: Values by (layer, kind), by the name of the panel; a missing cell stays empty.
        title: Name of the values.
        kinds: Order of the columns.
        digits: Decimals of the numbers in the cells.
    """
    found: set[int] = set()
    largest = 0.0
    for cells in panels.values():
        found.update(layer for layer, _ in cells)
        largest = max(largest, *cells.values(), 0.0)
    layers, largest = sorted(found), largest or 1.0  # all zeros: any scale will do
    width = len(panels) * (len(kinds) * CELL_WIDTH + 0.35) + 1.6
    figure = new_figure(width, max(len(layers) * CELL_HEIGHT + 1.3, 2.6), title)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, cells) in zip(axes, panels.items(), strict=True):
        grid = []
        for layer in layers:
            grid.append([cells.get((layer, kind), float("nan")) for kind in kinds])
        image = axis.imshow(grid, cmap="viridis", vmin=0.0, vmax=largest, aspect="auto", origin="upper")
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(kinds)), [kind.rsplit(".", 1)[-1] for kind in kinds])
        axis.set_yticks(range(len(layers)), list(map(str, layers)))
        axis.tick_params(labelsize=8, length=0)
        for (layer, kind), value in cells.items():
            colour = "black" if value > 0.6 * largest else "white"  # the upper colours are light
            place = kinds.index(kind), layers.index(layer)
            text = axis.text(*place, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=colour)
            text.set_in_layout(False)  # hundreds of texts inside their cells; measuring them takes most of the time
    axes[0].set_ylabel("layer")
    figure.supxlabel("kind of weight", fontsize=10)
    ticks = MaxNLocator(nbins=8, integer=digits == 0)
    figure.colorbar(image, ax=list(axes), label=title.split(",")[0], ticks=ticks, fraction=0.04, pad=0.02)
    return figure
