import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bishare.commands.evaluate.catalog import SUITES
from bishare.commands.evaluate.published import TASKS, Published
from bishare.commands.evaluate.report import Report, Score, count_questions, markdown, read_scores, read_subtasks, save

RESULTS = {
    "results": {
        **{
            f"local_{task}": {"alias": task, "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 4}
            for task in TASKS[:6]
        },
        **{
            f"local_{task}": {
                "acc,none": 0.1,
                "acc_stderr,none": 0.1,
                "acc_norm,none": 0.9,
                "acc_norm_stderr,none": 0.2,
            }
            for task in TASKS[6:]
        },
        "local_commonsense": {"alias": "local_commonsense"},
    },
    "group_subtasks": {"local_commonsense": [f"local_{task}" for task in TASKS]},
    "n-samples": {f"local_{task}": {"original": 9, "effective": 4} for task in TASKS},
}
SUITE = SUITES["commonsense"]


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


def test_the_average_takes_acc_where_there_is_no_acc_norm() -> None:
    scores = read_scores(RESULTS, SUITE, local=True)
    assert list(scores) == [*TASKS, "average"]
    assert scores["average"]["acc"].value == pytest.approx((6 * 0.5 + 2 * 0.1) / 8)
    assert scores["average"]["acc_norm"].value == pytest.approx((6 * 0.5 + 2 * 0.9) / 8)
    assert scores["average"]["acc_norm"].stderr == pytest.approx(math.sqrt(6 * 0.1**2 + 2 * 0.2**2) / 8)


def test_a_group_counts_the_questions_of_its_tasks_and_its_tasks_are_kept() -> None:
    suite = SUITES["mmlu"]
    groups = {f"local_mmlu::{name}": [f"local_mmlu::{name}::a", f"local_mmlu::{name}::b"] for name in ("stem",)}
    rows = {name: {"acc,none": 0.3, "acc_stderr,none": "N/A"} for name in suite.rows.values()}
    tasks = {name: {"acc,none": 0.4} for members in groups.values() for name in members}
    results = {
        "results": rows | tasks,
        "group_subtasks": {"local_mmlu": list(groups)} | groups,
        "n-samples": {name: {"effective": 3} for name in (*tasks, *rows)},
    }
    assert count_questions(results, suite, local=True)["mmlu"] == 6
    assert read_scores(results, suite, local=True)["mmlu"] == {"acc": Score(0.3, None)}
    assert read_subtasks(results, suite) == {"a": {"acc": Score(0.4, None)}, "b": {"acc": Score(0.4, None)}}


def test_filters_become_part_of_a_metrics_name() -> None:
    results = {"results": {"gsm8k": {"exact_match,strict-match": 0.2, "exact_match_stderr,strict-match": 0.1}}}
    scores = read_scores(results, SUITES["gsm8k"], local=False)
    assert scores == {"gsm8k": {"exact_match (strict-match)": Score(0.2, 0.1)}}


def test_the_page_has_a_row_for_every_task_and_says_what_it_belongs_to() -> None:
    page = markdown(report(base_scores=read_scores(RESULTS, SUITE, local=True)))
    assert "| task | n | base acc | acc | base acc_norm | acc_norm |" in page
    assert "| openbookqa | 4 | 50.0 ± 10.0 | 50.0 ± 10.0 |  |  |" in page
    assert "| average |  | 40.0 ± 3.5 | 40.0 ± 3.5 | 60.0 ± 4.7 | 60.0 ± 4.7 |" in page
    for fact in ("the first 4 of each task", "SHA-256 ab", "lm-evaluation-harness 0.4.13", "standard error"):
        assert fact in page


def test_published_scores_stand_in_a_column_of_their_own() -> None:
    row = Published("slice", (2, 4, 16), tuple(range(8)))
    lines = markdown(report(published=[row])).splitlines()
    assert lines[2].endswith("| published: slice 2-4-16, Llama 3-8B |")
    assert [line.split(" | ")[-1].rstrip(" |") for line in lines[4:13]] == [
        *(f"{i}.00" for i in range(8)),
        "3.50",
    ]


def test_earlier_results_are_not_written_over(tmp_path: Path) -> None:
    first = save(report(), [{"task": "piqa"}], tmp_path)
    second = save(report(limit=None), [], tmp_path)
    assert (first.name, second.name) == ("commonsense-0shot.md", "commonsense-0shot-2.md")
    assert json.loads(first.with_suffix(".json").read_text())["limit"] == 4
    assert json.loads(second.with_suffix(".json").read_text())["limit"] is None
    assert json.loads(first.with_suffix(".json").read_text())["scores"]["piqa"]["acc"] == {"value": 0.5, "stderr": 0.1}
    assert first.with_suffix(".samples.jsonl").read_text() == '{"task": "piqa"}\n'
