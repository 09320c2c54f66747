"""A suite runs with the adapter and on request without."""

from pathlib import Path
from typing import Any

import pytest

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.commands.evaluate import evaluation
from bishare.commands.evaluate.catalog import SUITES
from bishare.commands.evaluate.evaluation import evaluate_adapter
from bishare.commands.evaluate.options import Options
from bishare.errors import UserError
from bishare.models.attach import NAME, attach
from bishare.models.loading import load_base
from tests.randomised import randomise
from tests.tiny_base import save_tiny_base

SUITE = SUITES["gsm8k"]


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    base = save_tiny_base(tmp_path / "base")
    made = attach(load_base(str(base), dtype="float32"), BiShareConfig(r_local=1, size=8))
    randomise(made)
    save_adapter(made, tmp_path / "adapter", base=str(base))
    return str(tmp_path / "adapter")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The runs of the harness, each with whether an adapter is attached."""
    calls: list[dict[str, Any]] = []

    def run_suite(model: Any, tokenizer: Any, suite: Any, **options: Any) -> dict[str, Any]:
        calls.append({"with_adapter": hasattr(model, NAME), "training": model.training, **options})
        return {"samples": {"gsm8k": []}}

    monkeypatch.setattr(evaluation, "run_suite", run_suite)
    return calls


def test_adapter_is_scored_alone(adapter: str, runs: list[dict[str, Any]]) -> None:
    found = evaluate_adapter(Options(adapter=adapter, suite="gsm8k", limit=3, data="rows"), SUITE, 5)
    common = {"data": "rows", "shots": 5, "limit": 3, "batch_size": 16}
    assert runs == [{"with_adapter": True, "training": False, **common}]
    assert found.base_results is None
    assert found.base == str(Path(adapter).parent / "base")
    assert (found.dtype, found.config.method) == ("float32", "bishare")


def test_base_is_scored_before_the_adapter(adapter: str, runs: list[dict[str, Any]]) -> None:
    found = evaluate_adapter(Options(adapter=adapter, suite="gsm8k", with_base=True), SUITE, 0)
    assert [run["with_adapter"] for run in runs] == [False, True]
    assert found.samples() == []


def test_adapter_without_base_asks_for_one(adapter: str, tmp_path: Path) -> None:
    base = load_base(str(tmp_path / "base"), dtype="float32")
    made = attach(base, BiShareConfig(r_local=1, size=8))
    save_adapter(made, tmp_path / "nameless")
    with pytest.raises(UserError, match=r"nameless does not name its base model; give it with --base"):
        evaluate_adapter(Options(adapter=str(tmp_path / "nameless"), suite="gsm8k"), SUITE, 0)
