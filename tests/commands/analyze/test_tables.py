"""The tables of an analysis hold its means."""

import math

import pytest
from rich.table import Table

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.commands.analyze.analysis import Analysis, Options, analyze
from bishare.commands.analyze.tables import (
    contribution_table,
    difference_table,
    rank_table,
    show,
    similarity_table,
)
from tests.commands.analyze.adapters import write_adapter


@pytest.fixture(scope="module")
def analysis(base: str, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("adapters")
    mine = write_adapter(base, folder / "mine", BiShareConfig(size=16, r_inter=6))
    other = write_adapter(base, folder / "other", LoRAConfig(r=3, targets=["q", "up"]))
    return analyze(Options(adapter=mine, against=other))


def cells(table: Table) -> dict[str, list[str]]:
    """The cells behind the name of each row."""
    columns = [list(column.cells) for column in table.columns]
    rows = [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
    return {name: rest for name, *rest in rows}


def test_similarity_stands_beside_random_factors(analysis: Analysis) -> None:
    found = cells(similarity_table(analysis))
    mine = list(analysis.updates.mine.within_rmi.values())
    random = list(analysis.updates.random.within_rmi.values())
    assert found["mutual information within"] == [f"{sum(mine) / 3:.4f}", f"{sum(random) / 3:.4f}"]
    distances = analysis.updates.mine.across["all"].relative
    pairs = [distances[i, j].item() for i in range(3) for j in range(3) if i != j]
    assert found["relative distance across"][0] == f"{sum(pairs) / 6:.4f}"


def test_ranks_have_their_bound(analysis: Analysis) -> None:
    found = cells(rank_table(analysis))
    assert list(found) == list(analysis.ranks)
    of_local = [rank for slot, rank in analysis.ranks["local"].items() if slot.kind == "q"]
    effective = math.fsum(rank.effective for rank in of_local) / len(of_local)
    place = 1 + analysis.updates.mine.kinds.index("q")
    assert found["local"][0] == str(max(rank.numerical for rank in analysis.ranks["local"].values()))
    assert found["local"][place].endswith(f", {effective:.1f}")


def test_shares_need_no_text(analysis: Analysis) -> None:
    found = cells(contribution_table(analysis))
    assert list(found) == ["local", "intra", "inter"]
    assert all(len(row) == 1 and row[0].endswith("%") for row in found.values())


def test_differences_by_kind_and_together(analysis: Analysis) -> None:
    assert analysis.differences is not None
    found = cells(difference_table(analysis.differences))
    assert list(found) == ["q", "up", "all weights together"]
    whole = analysis.differences.whole
    assert found["all weights together"][1:3] == [f"{whole.relative:.4f}", f"{whole.random_relative:.4f}"]


def test_missing_pairs_are_empty_cells(base: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("one")
    adapter = write_adapter(base, folder, LoRAConfig(r=2, targets=["q"], layers=[1]))
    assert cells(similarity_table(analyze(Options(adapter=adapter))))["CKA within"] == ["", ""]


def test_all_tables_are_shown(analysis: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    show(analysis)
    shown = capsys.readouterr().out
    for title in ("similarity, layers", "mean rank", "contribution", "against, mean"):
        assert title in shown
