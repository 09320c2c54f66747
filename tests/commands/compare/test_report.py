"""Means, deviations and diverged runs in the table."""

import json
import math
from pathlib import Path

from bishare.commands.compare.command import best_rate
from bishare.commands.compare.comparison import Comparison, Method
from bishare.commands.compare.report import Cell, markdown, write_report
from bishare.commands.compare.runs import Result


def result(score: float | None, *, parameters: int = 1000) -> Result:
    return Result(score=score, parameters=parameters, head=34, steps=7, seconds=2.0, peak_gib=0.5)


def comparison(folder: Path) -> Comparison:
    methods = {
        name: Method(name=name, label=name.upper(), learning_rates=(0.1, 0.2), solve=None, tree={})
        for name in ("one", "two", "three")
    }
    return Comparison(
        folder=folder,
        fit={},
        tasks={"rte": {}, "cola": {}},
        methods=methods,
        seeds=(0, 1, 2),
        metric="val/score",
        is_max=True,
        match=None,
    )


def cell(method: str, task: str, *scores: float | None, parameters: int = 1000) -> Cell:
    results = [result(score, parameters=parameters) for score in scores]
    return Cell(task=task, method=method, learning_rate=0.2, tried={0.1: None, 0.2: scores[0]}, results=results)


def test_table_has_means_deviations_costs_and_rates(tmp_path: Path) -> None:
    cells = [cell("one", "rte", 0.5, 0.6, 0.7), cell("one", "cola", 0.1, 0.1, None, parameters=1200)]
    text = markdown(comparison(tmp_path), cells)
    assert "| ONE | 1,000 to 1,200 | 0.600 ± 0.100 | 0.100 ± 0.000 (1 diverged) | 0.350 | 2 | 0.50 |" in text
    assert "| ONE | 0.2 (0.1: diverged, 0.2: 0.500) | 0.2 (0.1: diverged, 0.2: 0.100) |" in text
    assert "TWO" not in text, "not done yet"
    assert "not counted: 34" in text


def test_method_whose_runs_all_diverged_says_so(tmp_path: Path) -> None:
    text = markdown(comparison(tmp_path), [cell("one", "rte", None, None, None)])
    assert "| ONE |  | diverged |" in text


def test_report_is_three_files_with_strict_json(tmp_path: Path) -> None:
    cells = [cell("one", "rte", 0.5), cell("two", "rte", None), cell("one", "cola", 0.2, math.nan)]
    files = write_report(comparison(tmp_path), cells, options=["--data.path", "x"])
    assert [file.name for file in files] == ["results.md", "results.json", "results.png"]
    content = json.loads(files[1].read_text())
    assert [c["mean"] for c in content["cells"]] == [0.5, None, 0.2]
    assert files[2].stat().st_size > 5000


def test_best_learning_rate_follows_the_goal() -> None:
    grid = {0.1: result(0.3), 0.2: result(0.4), 0.3: result(None), 0.4: result(math.nan)}
    assert best_rate(grid, is_max=True) == 0.2
    assert best_rate(grid, is_max=False) == 0.1
    assert best_rate({0.2: result(None), 0.1: result(None)}, is_max=True) == 0.1
