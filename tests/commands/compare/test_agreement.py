"""Sharing maps agree as far as their groupings do, whatever the layers are called whose Bs are used."""

import json
import math
from pathlib import Path

import pytest

from bishare.commands.compare.agreement import agreement, agreements, write_agreement
from bishare.commands.compare.comparison import Comparison, Method
from bishare.commands.compare.report import Cell
from bishare.commands.compare.runs import Result


def grouping(*owners: int) -> dict[str, int]:
    return {str(layer): owner for layer, owner in enumerate(owners)}


def cell(method: str, *groupings: dict[str, int]) -> Cell:
    results = [
        Result(score=0.5 + 0.1 * seed, parameters=9, head=0, steps=1, seconds=1.0, peak_gib=0.1, sharing=sharing)
        for seed, sharing in enumerate({"local.q": g} if g else {} for g in groupings)
    ]
    return Cell(task="rte", method=method, learning_rate=0.1, tried={0.1: 0.5}, results=results)


def test_same_groups_agree_fully_and_crossed_less() -> None:
    pairs = grouping(1, 1, 3, 3)
    assert agreement({"q": pairs}, {"q": grouping(0, 0, 2, 2)}) == pytest.approx(1.0)
    # Hubert and Arabie's index of {01}{23} and {02}{13}: no pair in common, expected 2 * 2 / 6
    assert agreement({"q": pairs}, {"q": grouping(2, 3, 2, 3)}) == pytest.approx((0 - 2 / 3) / (2 - 2 / 3))


def test_agreement_averages_over_common_layers() -> None:
    first = {"q": grouping(1, 1, 3, 3), "v": grouping(1, 1, 3, 3), "k": grouping(0, 0)}
    second = {"q": grouping(1, 1, 2), "v": grouping(2, 3, 2, 3)}
    assert agreement(first, second) == pytest.approx((1.0 - 0.5) / 2)
    assert math.isnan(agreement(first, {"down": grouping(0, 0)}))


def test_diagonal_is_agreement_between_seeds() -> None:
    pairs, crossed = grouping(1, 1, 3, 3), grouping(2, 3, 2, 3)
    assert agreements([cell("one", pairs, crossed), cell("two", pairs, crossed)]) == [
        [pytest.approx(-0.5), pytest.approx(1.0)],
        [pytest.approx(1.0), pytest.approx(-0.5)],
    ]


def test_diverged_run_agrees_with_none() -> None:
    pairs, crossed = grouping(1, 1, 3, 3), grouping(2, 3, 2, 3)
    found = agreements([cell("one", {}, pairs), cell("two", crossed, pairs)])
    assert found[0][1] == pytest.approx(1.0), "the runs of the second seed"
    assert math.isnan(found[0][0])


def comparison(folder: Path) -> Comparison:
    names = ("one", "two")
    methods = {name: Method(name=name, label=name, learning_rates=(0.1,), solve=None, tree={}) for name in names}
    options = {"fit": {}, "tasks": {"rte": {}}, "seeds": (0, 1), "metric": "val/score", "is_max": True, "match": None}
    return Comparison(folder=folder, methods=methods, **options)


def test_files_are_written_only_where_layers_merged(tmp_path: Path) -> None:
    cells = [cell("one", grouping(1, 1, 2)), cell("two", grouping(0, 2, 2))]
    files = write_agreement(comparison(tmp_path), cells)
    assert [file.name for file in files] == ["sharing.json", "sharing.png"]
    content = json.loads(files[0].read_text())["rte"]
    assert content["methods"] == ["one", "two"]
    assert content["adjusted_rand"][0] == [None, pytest.approx(-0.5)], "one seed has none to agree with"
    assert write_agreement(comparison(tmp_path), [cell("one", {})]) == []
