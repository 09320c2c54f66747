"""The notebooks run from top to bottom on a small run, and stand in the repository with the demo's pictures."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from bishare.cli import main
from tests.places import PROJECT
from tests.tiny_base import save_tiny_base

FOLDER = PROJECT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|mnt|opt|usr)/")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six optimizer steps with merges and answers, and an evaluation of its adapter."""
    folder = tmp_path_factory.mktemp("notebooks")
    base = save_tiny_base(folder / "base", num_layers=3)
    rows = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 15)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapter = {"class_path": "bishare.BiShareConfig", "init_args": {"size": 8, "merging": True}}
    merging = {"start": 1, "interval": 2, "num_merges": 1}
    answers = {"questions": ["Count to 3."], "max_new_tokens": 4}
    config = {
        "model": {"base": str(base), "base_dtype": "float32", "learning_rate": 0.01, "adapter": adapter},
        "data": {
            "class_path": "bishare.data.InstructionData",
            "init_args": {"path": str(folder / "rows.jsonl"), "batch_size": 2, "num_validation": 2},
        },
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "accelerator": "cpu",
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "callbacks.AdaptiveMerging", "init_args": merging},
                {"class_path": "callbacks.AdapterCheckpoint"},
                {"class_path": "callbacks.SampleAnswers", "init_args": answers},
            ],
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "config.yaml")]) == 0
    for split in ("train", "test"):
        (folder / f"gsm8k_{split}.jsonl").write_text('{"question": "1 and 1?", "answer": "#### 2"}\n')
    options = ["--suite", "gsm8k", "--shots", "0", "--data", str(folder)]
    assert main(["evaluate", "--adapter", str(folder / "run/adapter"), *options]) == 0
    return folder / "run"


def outputs(notebook: Any) -> Iterator[Any]:
    return (output for cell in notebook.cells for output in cell.get("outputs", ()))


def cells_with_pictures(notebook: Any) -> list[str]:
    return [c.id for c in notebook.cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", ()))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BISHARE_RUN", str(run_folder))
    notebook = nbformat.read(path, as_version=4)
    committed = cells_with_pictures(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert cells_with_pictures(notebook) == committed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_shows_its_pictures_unrun(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert len(cells_with_pictures(notebook)) >= 4
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert not MACHINE_PATH.search(path.read_text(encoding="utf-8"))


def test_both_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["evaluate_checkpoint", "sharing_analysis"]
