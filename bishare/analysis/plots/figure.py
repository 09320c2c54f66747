"""A figure to draw on, without a display and without a change to pyplot's state."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(width: float, height: float, title: str = "", *, dpi: int = 100) -> Figure:
    """Make an empty figure.

    Args:
        width: In inches.
        height: In inches.
        title: Text above the picture, empty for none.
        dpi: Pixels per inch.
    """
    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)  # pyplot would open a window and keep every figure
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
