from matplotlib import pyplot

from bishare.analysis.plots.figure import new_figure


def test_size_and_title_are_as_given() -> None:
    figure = new_figure(4.0, 2.5, "Losses", dpi=120)
    assert figure.get_size_inches().tolist() == [4.0, 2.5]
    assert figure.get_dpi() == 120
    assert figure.get_suptitle() == "Losses"


def test_pyplot_holds_no_figure(tmp_path) -> None:
    new_figure(2.0, 2.0, "t").savefig(tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 0
    assert pyplot.get_fignums() == []
