"""A run's configuration, and results that are kept until the configuration changes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bishare.commands.compare import runs
from bishare.commands.compare.comparison import Comparison, Method
from bishare.commands.compare.runs import Result, Run, Runner, tree_of
from bishare.errors import UserError

RUN = Run("sst2", "lora", 0.01, seed=3)
FOUND = {"parameters": 512, "head": 34, "steps": 4, "seconds": 1.5, "peak_gib": 0.5}


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    adapter = {"class_path": "bishare.LoRAConfig", "init_args": {"r": 2}}
    method = Method(name="lora", label="LoRA", learning_rates=(0.01,), solve=None, tree={"model": {"adapter": adapter}})
    return Comparison(
        folder=tmp_path,
        fit={"model": {"base": "tiny"}, "trainer": {"max_steps": 4}},
        tasks={"sst2": {"data": {"init_args": {"task": "sst2"}}}},
        methods={"lora": method},
        seeds=(3,),
        metric="val/score",
        is_max=True,
        match=None,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run; each writes a result."""
    commands: list[list[str]] = []

    def call(command: list[str], output: Any) -> int:
        commands.append(command)
        folder = Path(command[command.index("--trainer.default_root_dir") + 1])
        (folder / "result.json").write_text(json.dumps({**FOUND, "metrics": {"val/score": 0.75}}))
        return 0

    monkeypatch.setattr(runs, "_call", call)
    return commands


def failing_with(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(command: list[str], output: Any) -> int:
        output.write(f"some warning\n{line}\n")
        return 1

    monkeypatch.setattr(runs, "_call", call)


def test_configuration_has_task_method_rate_and_seed(comparison: Comparison) -> None:
    tree = tree_of(comparison, RUN, {"r": 5})
    assert tree["seed_everything"] == 3
    assert tree["data"]["init_args"]["task"] == "sst2"
    assert tree["model"]["learning_rate"] == 0.01
    assert tree["model"]["adapter"]["init_args"] == {"r": 5}
    assert tree["trainer"]["callbacks"] == [{"class_path": "callbacks.ResultFile"}]


def test_result_of_fit_is_read(comparison: Comparison, calls: list[list[str]]) -> None:
    result = Runner(comparison, ["--data.path", "glue"]).execute(RUN)
    assert result == Result(score=0.75, **FOUND)
    (command,) = calls
    assert command[3] == "fit"
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert given["--data.path"] == "glue"
    assert given["--default_callbacks"] == "false", "ResultFile holds all that a comparison needs"
    written = yaml.safe_load(Path(command[5]).read_text())
    assert written == tree_of(comparison, RUN)


def test_kept_result_is_not_trained_again(comparison: Comparison, calls: list[list[str]]) -> None:
    runner = Runner(comparison, [])
    assert runner.result(RUN) is None
    assert runner.execute(RUN) == runner.execute(RUN) == runner.result(RUN)
    assert len(calls) == 1
    assert Runner(comparison, ["--data.max_examples", "8"]).result(RUN) is None


def test_divergence_is_a_result(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with("bishare: train/loss is nan at optimizer step 2.", monkeypatch)
    assert Runner(comparison, []).execute(RUN).score is None


def test_failure_names_run_and_log(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with("bishare: data.path is not given.", monkeypatch)
    with pytest.raises(UserError, match=r"sst2-lora-lr0\.01-seed3 failed: data\.path is not given\. .*output\.txt"):
        Runner(comparison, []).execute(RUN)


def test_process_gives_its_code_and_output(tmp_path: Path) -> None:
    code = "import sys; print('out', flush=True); print('error', file=sys.stderr); sys.exit(3)"
    with (tmp_path / "output.txt").open("w") as output:
        assert runs._call([sys.executable, "-c", code], output) == 3
    assert (tmp_path / "output.txt").read_text() == "out\nerror\n"
