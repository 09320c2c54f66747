"""A comparison from its configuration to its table, stopped and gone on with; ``fit`` runs inside this process."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bishare.cli import main
from bishare.commands.compare import runs
from tests.glue_base import save_base, save_task


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were started, in order; a second start of a name repeats the result of the first."""
    names: list[str] = []
    results: dict[str, str] = {}

    def call(command: list[str], output: Any) -> int:
        folder = Path(command[command.index("--config") + 1]).parent
        names.append(folder.name)
        if folder.name in results:
            (folder / "result.json").write_text(results[folder.name])
            return 0
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main(command[3:])
        if code == 0:
            results[folder.name] = (folder / "result.json").read_text()
        return code

    monkeypatch.setattr(runs, "_call", call)
    return names


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    for task in ("sst2", "stsb"):
        save_task(tmp_path / "glue", task)
    adapter = {"init_args": {"targets": ["q", "v"], "r": 2}}
    merging = {"class_path": "callbacks.AdaptiveMerging", "init_args": {"start": 1, "interval": 1, "num_merges": 2}}
    tree = {
        "folder": str(tmp_path / "out"),
        "metric": "val/score",
        "goal": "max",
        "seeds": [0, 1],
        "learning_rates": [0.01, 0.02],
        "fit": {
            "model": {"base": str(base), "base_dtype": "float32", "warmup_steps": 1},
            "data": {"class_path": "bishare.data.ClassificationData", "init_args": {"task": "sst2", "batch_size": 16}},
            "trainer": {"accelerator": "cpu", "max_epochs": 1, "logger": False},
        },
        "tasks": {"sst2": {}, "stsb": {"data": {"init_args": {"task": "stsb"}}}},
        "methods": {
            "lora": {"model": {"adapter": {"class_path": "bishare.LoRAConfig", **adapter}}},
            "aslora": {
                "solve": "r",
                "learning_rates": [0.02],
                "model": {"adapter": {"class_path": "bishare.ASLoRAConfig", **adapter}},
                "trainer": {"callbacks+": [merging]},
            },
        },
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def compare(config: Path, tmp_path: Path, *options: str) -> int:
    return main(["compare", "--config", str(config), "--data.path", str(tmp_path / "glue"), *options])


def test_all_runs_are_trained_once(
    config: Path, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(config, tmp_path) == 0
    assert len(calls) == len(set(calls)) == 2 * (3 + 2)
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| lora | 512 |" in text
    assert "| aslora | 192 |" in text, "two As of 2 x 16 and two Bs of 16 x 2 for each kind, after merging"
    cells = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert [(c["task"], c["method"]) for c in cells] == [
        ("sst2", "lora"),
        ("sst2", "aslora"),
        ("stsb", "lora"),
        ("stsb", "aslora"),
    ]
    first = cells[0]
    assert first["mean"] == pytest.approx(sum(r["score"] for r in first["results"]) / 2)
    assert first["tried"][str(first["learning_rate"])] == max(first["tried"].values())

    # Killed after three runs: their results stay, and what the fourth had begun is thrown away.
    calls.clear()
    kept = {"sst2-lora-lr0.01-seed0", "sst2-lora-lr0.02-seed0", "sst2-aslora-lr0.02-seed1"}
    for file in (tmp_path / "out" / "results").iterdir():
        if file.stem not in kept:
            file.unlink()
    assert compare(config, tmp_path) == 0
    assert len(calls) == 7
    assert not kept & set(calls)

    # Another configuration makes its runs old.
    calls.clear()
    assert compare(config, tmp_path, "--data.max_examples", "32") == 0
    assert len(calls) == 10


def test_ranks_are_solved_to_match_a_method(
    config: Path, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(config.read_text())
    tree |= {"seeds": [0], "learning_rates": [0.02]}
    del tree["tasks"]["stsb"]
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert compare(config, tmp_path, "--match", "lora") == 0
    # 96 values for each unit of rank at the end: 2 As of 16 and 4 Bs of 16.
    assert "aslora: 480 parameters, r 5" in capsys.readouterr().out
    assert "| aslora | 480 |" in (tmp_path / "out" / "results.md").read_text()


def test_diverging_learning_rate_is_a_result(config: Path, tmp_path: Path, calls: list[str]) -> None:
    tree = yaml.safe_load(config.read_text())
    tree["learning_rates"] = [0.01, 1e38]
    tree["fit"]["trainer"]["max_epochs"] = 4
    del tree["tasks"], tree["methods"]["aslora"]
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert compare(config, tmp_path) == 0
    (cell,) = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert cell["learning_rate"] == 0.01
    assert cell["tried"]["1e+38"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.pth", "x"], "failed: data.pth is not known; did you mean path? (the whole output: "),
        (["--data.task", "rte"], "has no rte_validation.jsonl"),
        (["--match", "nobody"], "match is nobody; give a number of parameters or one of lora, aslora"),
        (["--match", "10"], "methods.lora has more than 10 values"),
    ],
)
def test_a_mistake_ends_in_one_line(
    config: Path,
    tmp_path: Path,
    calls: list[str],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if message.startswith("methods"):
        tree = yaml.safe_load(config.read_text())
        tree["methods"]["lora"]["solve"] = "r"
        config.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert compare(config, tmp_path, *options) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_unlogged_metric_is_named(
    config: Path, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace("val/score", "val/scroe"))
    assert compare(config, tmp_path) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "metric is val/scroe, which sst2-lora-lr0.01-seed0 did not log; it logged " in line
    assert "val/score" in line
