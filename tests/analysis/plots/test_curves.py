import pytest

from bishare.analysis.plots.curves import curves, distance_map, score_bars


def test_panels_have_curves_and_empty_ones_hide() -> None:
    line = [(0, 1.0), (5, 0.5)]
    figure = curves({"a": {"x": line, "y": line}, "b": {"x": line}, "c": {"x": line}, "d": {"x": line}}, title="t")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["a", "b", "c", "d"]
    assert [len(axis.lines) for axis in shown] == [2, 1, 1, 1]
    assert [axis.get_legend() is not None for axis in shown] == [True, False, False, False]
    assert list(shown[0].lines[0].get_ydata()) == [1.0, 0.5]


@pytest.mark.parametrize("with_base", [True, False])
def test_scores_stand_beside_the_bases(with_base: bool) -> None:
    scores = {"piqa": {"acc": {"value": 0.1, "stderr": 0.1}, "acc_norm": {"value": 0.6, "stderr": None}}}
    base = {"piqa": {"acc": {"value": 0.1, "stderr": 0.1}, "acc_norm": {"value": 0.5, "stderr": 0.2}}}
    evaluation = {"suite": "s", "shots": 0, "data": "hub", "scores": scores, "base_scores": base if with_base else None}
    (axis,) = score_bars(evaluation).axes
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([60.0, 50.0] if with_base else [60.0])


def test_distances_are_drawn_by_layer() -> None:
    axis = distance_map([[0.0, 2.0], [2.0, 0.0]], [3, 7], title="t").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["3", "7"]
    assert axis.images[0].get_array().max() == 2.0
