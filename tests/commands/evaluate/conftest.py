"""Local rows for every suite, a few of each task."""

import json
from pathlib import Path
from typing import Any

import pytest

from bishare.commands.evaluate.catalog import FOLDER, SUITES


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_report_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval asks pip and others about the machine after each evaluation, a second or more; no test reads it."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture
def rows_folder(tmp_path: Path) -> Path:
    """Four questions of every commonsense task, MMLU subject and of GSM8K, with answers of different lengths."""
    folder = tmp_path / "rows"
    for file in SUITES["commonsense"].files:
        task = Path(file).stem
        choices = ["true", "false"] if task == "boolq" else ["short", "a somewhat longer one", "été"]
        question = "The _ was too big for it." if task == "winogrande" else f"What is {task}"
        choices = choices[:2] if task in ("piqa", "winogrande") else choices
        write_rows(
            folder / file,
            [{"question": f"{question} {'and ' * i}so?", "choices": choices, "answer": i % 2} for i in range(4)],
        )
    lines = (FOLDER / "local_mmlu.yaml").read_text(encoding="utf-8").splitlines()
    subjects = [line.split("{task: ")[1].split(",")[0] for line in lines if "{task: " in line]
    assert len(subjects) == 57
    for split, num in (("test", 4), ("dev", 5)):
        write_rows(
            folder / f"mmlu_{split}.jsonl",
            [
                {"subject": subject, "question": f"{split} {i}?", "choices": ["0", "1", "2", "3"], "answer": i % 4}
                for subject in subjects
                for i in range(num)
            ],
        )
    for split in ("train", "test"):
        write_rows(
            folder / f"gsm8k_{split}.jsonl",
            [{"question": f"{split}: {i} and 1?", "answer": f"They are {i + 1}.\n#### {i + 1}"} for i in range(8)],
        )
    return folder
