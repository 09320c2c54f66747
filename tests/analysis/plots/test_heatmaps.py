"""The figure says what its numbers are and where they stand."""

from bishare.analysis.plots.heatmaps import heat_map


def test_heat_map_labels_layers_kinds_and_cells() -> None:
    panels = {
        "whole": {(0, "q"): 22.0, (0, "mlp.up"): 5.0, (7, "q"): 3.0, (7, "mlp.up"): 1.0},
        "local": {(0, "q"): 2.0, (7, "q"): 2.0},
    }
    figure = heat_map(panels, title="numerical rank, step 10", kinds=["q", "mlp.up"], digits=0)
    whole, local, colour_bar = figure.axes
    assert [axis.get_title() for axis in (whole, local)] == ["whole", "local"]
    assert [tick.get_text() for tick in whole.get_xticklabels()] == ["q", "up"]
    assert [tick.get_text() for tick in whole.get_yticklabels()] == ["0", "7"]
    cells = {text.get_position(): text.get_text() for text in whole.texts}
    assert cells == {(0, 0): "22", (1, 0): "5", (0, 1): "3", (1, 1): "1"}
    assert len(local.texts) == 2
    assert colour_bar.get_ylabel() == "numerical rank"
    assert whole.images[0].get_clim() == local.images[0].get_clim() == (0.0, 22.0)


def test_heat_map_of_zeros_is_drawn() -> None:
    figure = heat_map({"whole": {(0, "q"): 0.0}}, title="norm, step 0", kinds=["q"], digits=2)
    figure.canvas.draw()
    assert figure.axes[0].texts[0].get_text() == "0.00"
