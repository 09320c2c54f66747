"""Scores and questions are read from the harness's results."""

import math

import pytest

from bishare.commands.evaluate.catalog import SUITES
from bishare.commands.evaluate.published import TASKS
from bishare.commands.evaluate.scores import Score, count_questions, read_samples, read_scores, read_subtasks
from tests.commands.evaluate.results import RESULTS, SUITE


def test_average_takes_acc_without_acc_norm() -> None:
    scores = read_scores(RESULTS, SUITE, local=True)
    assert list(scores) == [*TASKS, "average"]
    assert scores["average"]["acc"].value == pytest.approx((6 * 0.5 + 2 * 0.1) / 8)
    assert scores["average"]["acc_norm"].value == pytest.approx((6 * 0.5 + 2 * 0.9) / 8)
    assert scores["average"]["acc_norm"].stderr == pytest.approx(math.sqrt(6 * 0.1**2 + 2 * 0.2**2) / 8)


def test_group_counts_questions_of_its_tasks() -> None:
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


def test_filter_is_part_of_metric_name() -> None:
    results = {"results": {"gsm8k": {"exact_match,strict-match": 0.2, "exact_match_stderr,strict-match": 0.1}}}
    scores = read_scores(results, SUITES["gsm8k"], local=False)
    assert scores == {"gsm8k": {"exact_match (strict-match)": Score(0.2, 0.1)}}


def test_question_has_choices_and_metrics() -> None:
    chosen = {"doc_id": 3, "target": 1, "filter": "none", "metrics": ["acc"], "acc": 1.0}
    written = {"doc_id": 0, "target": "4", "filter": "strict", "metrics": [], "filtered_resps": ["4"]}
    samples = {
        "local_mmlu::stem::astronomy": [{**chosen, "filtered_resps": [(-1.5, False), (-0.5, True)]}],
        "local_gsm8k": [written],
    }
    first, second = read_samples({"samples": samples}, "adapter")
    assert first == {
        "model": "adapter",
        "task": "astronomy",
        "question": 3,
        "target": 1,
        "filter": "none",
        "choices": [-1.5, -0.5],
        "acc": 1.0,
    }
    assert (second["task"], second["choices"]) == ("gsm8k", ["4"])
