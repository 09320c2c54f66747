import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.factors import Slot
from bishare.commands.evaluate.evaluation import Evaluation
from bishare.commands.evaluate.options import Options
from bishare.commands.evaluate.published import Published
from bishare.commands.evaluate.report import NOT_COMPARABLE, Report, make_report, markdown, save
from bishare.commands.evaluate.scores import count_questions, read_scores
from tests.commands.evaluate.results import RESULTS, SUITE


def report(**changes: object) -> Report:
    made = Report(
        suite="commonsense",
        shots=0,
        limit=4,
        data="hub",
        adapter="runs/mine/adapter",
        method="bishare",
        adapter_sha256="ab",
        base="my/llama",
        base_sha256=None,
        versions={"lm-evaluation-harness": "0.4.13"},
        dtype="float32",
        device="cpu",
        batch_size=16,
        seconds=1.0,
        num_questions=count_questions(RESULTS, SUITE, local=True),
        scores=read_scores(RESULTS, SUITE, local=True),
        base_scores=None,
        published=[],
        subtasks={},
    )
    return replace(made, **changes)


def test_page_has_a_row_for_every_task() -> None:
    page = markdown(report(base_scores=read_scores(RESULTS, SUITE, local=True)))
    assert "| task | n | base acc | acc | base acc_norm | acc_norm |" in page
    assert "| openbookqa | 4 | 50.0 ± 10.0 | 50.0 ± 10.0 |  |  |" in page
    assert "| average |  | 40.0 ± 3.5 | 40.0 ± 3.5 | 60.0 ± 4.7 | 60.0 ± 4.7 |" in page
    for fact in ("the first 4 of each task", "SHA-256 ab", "lm-evaluation-harness 0.4.13", "standard error"):
        assert fact in page


def test_published_scores_have_a_column() -> None:
    row = Published("slice", (2, 4, 16), tuple(range(8)))
    lines = markdown(report(published=[row])).splitlines()
    assert lines[2].endswith("| published: slice 2-4-16, Llama 3-8B |")
    assert [line.split(" | ")[-1].rstrip(" |") for line in lines[4:13]] == [
        *(f"{i}.00" for i in range(8)),
        "3.50",
    ]


def test_earlier_results_are_kept(tmp_path: Path) -> None:
    first = save(report(), [{"task": "piqa"}], tmp_path)
    second = save(report(limit=None), [], tmp_path)
    assert (first.name, second.name) == ("commonsense-0shot.md", "commonsense-0shot-2.md")
    assert json.loads(first.with_suffix(".json").read_text())["limit"] == 4
    assert json.loads(second.with_suffix(".json").read_text())["limit"] is None
    assert json.loads(first.with_suffix(".json").read_text())["scores"]["piqa"]["acc"] == {"value": 0.5, "stderr": 0.1}
    assert first.with_suffix(".samples.jsonl").read_text() == '{"task": "piqa"}\n'


@pytest.mark.parametrize("data", [None, "rows"])
def test_published_scores_belong_to_hub_data(data: str | None, tmp_path: Path) -> None:
    config = BiShareConfig(transform="slice", r_local=2, r_intra=4, r_inter=16)
    adapter = config.build([Slot(name="0.q", layer=0, kind="q", in_features=8, out_features=8)])
    save_adapter(adapter, tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    local = data is not None
    names = SUITE.rows.values() if local else SUITE.rows
    results = {
        "results": {name: {"acc,none": 0.5} for name in names},
        "group_subtasks": {},
        "n-samples": {name: {"effective": 4} for name in names},
    }
    evaluation = Evaluation(
        config=config,
        base=str(tmp_path / "base"),
        dtype="float32",
        device="cpu",
        seconds=1.23,
        results=results,
        base_results=None,
    )
    made = make_report(Options(adapter=str(tmp_path / "adapter"), suite="commonsense", data=data), SUITE, 0, evaluation)
    assert [row.ranks for row in made.published] == ([] if local else [(2, 4, 16)])
    assert made.data == (NOT_COMPARABLE if local else "hub")
    assert made.num_questions["piqa"] == 4
    assert made.base_sha256 == hashlib.sha256().hexdigest()  # no weights, no bytes
    assert (made.seconds, made.base_scores) == (1.2, None)
