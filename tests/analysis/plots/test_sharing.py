"""The pictures of merging say what the owner map and the merges say."""

from itertools import pairwise

from matplotlib.figure import Figure

from bishare.analysis.plots.sharing import Tie, merge_tree, sharing_map


def test_map_names_owners_and_colours_sharers_alike() -> None:
    figure = sharing_map({"local.q": {0: 2, 1: 1, 2: 2}, "intra": {0: 0, 2: 2}}, title="map")

    (axis,) = figure.axes
    cells = {(text.get_position()): text.get_text() for text in axis.texts}
    assert cells == {(0, 0): "2", (0, 1): "1", (0, 2): "2", (1, 0): "0", (1, 2): "2"}
    colours = {(p.get_x() + 0.5, p.get_y() + 0.5): p.get_facecolor() for p in axis.patches}
    assert colours[0, 0] == colours[0, 2] != colours[0, 1] == colours[1, 0] == colours[1, 2]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["q", "intra"]


def horizontal(figure: Figure, panel: int) -> list[tuple[float, float, float]]:
    """Every horizontal line of a panel: (x from, x to, y)."""
    lines = []
    for line in figure.axes[panel].lines:
        points = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        lines += [(min(x, x1), max(x, x1), y) for (x, y), (x1, y1) in pairwise(points) if y == y1]
    return lines


def test_tree_joins_layers_at_their_merge() -> None:
    ties = [Tie(10, 1, 3), Tie(20, 0, 2), Tie(30, 3, 4)]

    figure = merge_tree({"local.q": range(5), "intra": range(5)}, {"local.q": ties}, title="tree")

    order = [int(label.get_text()) for label in figure.axes[0].get_yticklabels()]
    for members in ({1, 3}, {0, 2}, {1, 3, 4}):
        places = sorted(order.index(layer) for layer in members)
        assert places == list(range(places[0], places[0] + len(members)))
    ends = {(x1, order[int(y)]) for x, x1, y in horizontal(figure, 0) if y == int(y) and x < 10}
    assert {(10, 1), (10, 3), (20, 0), (20, 2), (30, 4)} <= ends
    assert len(horizontal(figure, 1)) == 5


def test_tree_without_merges_is_drawn() -> None:
    assert len(horizontal(merge_tree({"local.q": [0, 1]}, {}, title="tree"), 0)) == 2
