"""``evaluate`` on a tiny base model and local rows, as a user calls it."""

import json
from pathlib import Path

import pytest

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.cli import main
from bishare.commands.evaluate.catalog import SUITES
from bishare.models.attach import attach
from bishare.models.loading import load_base
from tests.randomised import randomise
from tests.tiny_base import save_tiny_base

TASKS = list(SUITES["commonsense"].rows)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_base(tmp_path / "base")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three questions of each commonsense task."""
    for file in SUITES["commonsense"].files:
        path = tmp_path / "rows" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        choices = ["true", "false"] if path.stem == "boolq" else ["one", "another"]
        lines = [{"question": f"Is {i} _ it", "choices": choices, "answer": i % 2} for i in range(3)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows"


def save(base: Path, folder: Path, *, trained: bool = True) -> Path:
    """An adapter for this base; untrained it starts as a no-op."""
    adapter = attach(load_base(str(base), dtype="float32"), BiShareConfig(r_local=1, size=8))
    if trained:
        randomise(adapter)
    save_adapter(adapter, folder, base=str(base))
    return folder


def evaluate(adapter: Path, *options: str) -> int:
    return main(["evaluate", "--adapter", str(adapter), *options])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bishare: ")]
    return line


def test_eight_tasks_are_shown_and_written(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save(base, tmp_path / "run" / "adapter")
    options = ("--suite", "commonsense", "--data", str(rows), "--limit", "2", "--with_base", "true")
    assert evaluate(adapter, *options) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in [*TASKS, "average", "local sample, not comparable"])
    content = json.loads((tmp_path / "run/evaluation/commonsense-0shot.json").read_text())
    assert list(content["scores"]) == [*TASKS, "average"]
    assert content["num_questions"] == dict.fromkeys(TASKS, 2)
    assert content["data"] == "local sample, not comparable"
    assert content["published"] == []
    assert len(content["adapter_sha256"]) == len(content["base_sha256"]) == 64
    page = (tmp_path / "run/evaluation/commonsense-0shot.md").read_text()
    assert page.count("base acc") == 2
    samples = [json.loads(line) for line in (tmp_path / "run/evaluation/commonsense-0shot.samples.jsonl").open()]
    assert len(samples) == 2 * 8 * 2
    of_models = [[s["choices"] for s in samples if s["model"] == model] for model in ("adapter", "base")]
    assert of_models[0] != of_models[1]


def test_untrained_adapter_is_refused(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save(base, tmp_path / "adapter", trained=False)
    assert evaluate(adapter, "--suite", "commonsense", "--data", str(rows)) == 1
    assert "changes no logit" in refusal(capsys)
    assert not (tmp_path / "evaluation").exists()


def test_adapter_of_another_base_is_refused(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save(save_tiny_base(tmp_path / "other", width=32), tmp_path / "adapter")
    assert evaluate(adapter, "--suite", "commonsense", "--data", str(rows), "--base", str(base)) == 1
    assert "was trained on another base" in refusal(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--suite", "comonsense"), "comonsense is no suite; did you mean commonsense?"),
        (("--suite", "mmlu", "--data", "nowhere"), "needs nowhere/mmlu_test.jsonl, which is not there"),
        (("--suite", "mmlu", "--shots", "-1"), "shots is -1; it must be at least 0"),
        (("--suite", "mmlu", "--limit", "0"), "limit is 0; it must be at least 1"),
        (("--suite", "mmlu", "--dtype", "int8"), "dtype"),
        (("--suite", "mmlu", "--limits", "3"), "--limits is not known; did you mean --limit?"),
        ((), "suite is not given"),
        (("--suite", "gsm8k"), "holds no adapter"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert evaluate(tmp_path / "adapter", *options) == 1
    assert message in refusal(capsys)
