"""Heat maps of one value per weight: layers down, kinds across, a panel for each level."""

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CELL_WIDTH, CELL_HEIGHT = 0.55, 0.26  # inches; room for four digits


def heat_map(
    panels: Mapping[str, Mapping[tuple[int, str], float]], *, title: str, kinds: Sequence[str], digits: int
) -> Figure:
    """Draw panels that share one colour scale, from 0 to the largest value, each cell with its number.

    Args:
        panels: Values by (layer, kind), by the panel's name; a missing cell stays empty.
        title: What the values are.
        kinds: Order of the columns.
        digits: Decimals of the numbers in the cells.
    """
    layers = sorted({layer for cells in panels.values() for layer, _ in cells})
    largest = max((value for cells in panels.values() for value in cells.values()), default=0.0) or 1.0
    width = len(panels) * (len(kinds) * CELL_WIDTH + 0.35) + 1.6
    figure = Figure(figsize=(width, max(len(layers) * CELL_HEIGHT + 1.3, 2.6)), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)  # draws without a display and leaves pyplot's state alone
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, cells) in zip(axes, panels.items(), strict=True):
        grid = [[cells.get((layer, kind), float("nan")) for kind in kinds] for layer in layers]
        image = axis.imshow(grid, cmap="viridis", vmin=0.0, vmax=largest, aspect="auto", origin="upper")
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(kinds)), [kind.rsplit(".", 1)[-1] for kind in kinds])
        axis.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axis.tick_params(labelsize=8, length=0)
        for (layer, kind), value in cells.items():
            colour = "black" if value > 0.6 * largest else "white"
            place = kinds.index(kind), layers.index(layer)
            text = axis.text(*place, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=colour)
            text.set_in_layout(False)  # hundreds of texts inside their cells; measuring them takes most of the time
    axes[0].set_ylabel("layer")
    figure.supxlabel("kind of weight", fontsize=10)
    figure.suptitle(title, fontsize=11)
    ticks = MaxNLocator(nbins=8, integer=digits == 0)
    figure.colorbar(image, ax=list(axes), label=title.split(",")[0], ticks=ticks, fraction=0.04, pad=0.02)
    return figure
