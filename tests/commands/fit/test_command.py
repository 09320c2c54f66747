"""Fit, resume, validate and predict through the command line, on a tiny model and a file of instructions."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from bishare.cli import main
from bishare.commands.fit.command import BiShareCLI, users_mistake
from bishare.errors import UserError
from tests.commands.fit_run import Run, last_line


def test_run_fills_one_folder_and_resumes(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run("fit", "--ckpt_path", "last") == 1
    assert "there is no last checkpoint" in last_line(capsys)
    assert not folder.exists()

    assert run("fit") == 0
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} >= {
        "adapter",
        "checkpoints",
        "config.yaml",
    }
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    first = (folder / "config.yaml").read_text()
    checkpoint = (folder / "checkpoints" / "last.ckpt").read_bytes()

    assert run("fit") == 1
    assert "already holds a run; resume it with --ckpt_path last" in last_line(capsys)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == checkpoint

    assert run("fit", "--ckpt_path", "last", "--trainer.max_steps", "3") == 0
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert (folder / "config.yaml").read_text() == first
    assert yaml.safe_load((folder / "config-2.yaml").read_text())["trainer"]["max_steps"] == 3

    capsys.readouterr()
    assert run("validate", "--ckpt_path", "last") == 0
    assert "val/loss" in capsys.readouterr().out
    assert not (folder / "config-3.yaml").exists()


def test_saved_configuration_runs_again_by_public_names(run: Run, tmp_path: Path) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["adapter"]["class_path"] == "bishare.BiShareConfig"
    assert saved["data"]["class_path"] == "bishare.data.InstructionData"
    assert saved["trainer"]["callbacks"][0]["class_path"] == "callbacks.AdapterCheckpoint"
    again = ["fit", "--config", str(tmp_path / "run" / "config.yaml")]
    assert main([*again, "--trainer.default_root_dir", str(tmp_path / "again")]) == 0
    same = (tmp_path / "again" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert same == (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_options_win_over_those_of_a_checkpoint(run: Run, tmp_path: Path) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    options = ["--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt"), "--model.warmup_steps", "7"]
    assert run("fit", *options) == 0
    assert yaml.safe_load((tmp_path / "run" / "config-2.yaml").read_text())["model"]["warmup_steps"] == 7


def test_folder_with_only_an_adapter_is_kept(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    assert run("fit") == 1
    assert "already holds a run" in last_line(capsys)


def test_own_checkpoint_callback_writes_to_run_folder(run: Run, tmp_path: Path) -> None:
    own = "lightning.pytorch.callbacks.ModelCheckpoint"
    assert run("fit", "--trainer.callbacks+", own, "--trainer.callbacks.every_n_train_steps", "1") == 0
    assert [path.suffix for path in (tmp_path / "run" / "checkpoints").iterdir()] == [".ckpt"]
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_predict_writes_answers_to_held_out_prompts(run: Run, tmp_path: Path) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    assert run("predict", "--ckpt_path", "last", "--model.max_new_tokens", "2") == 0
    rows = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [sorted(json.loads(row)) for row in rows] == [["answer", "prompt", "reference"]] * 2


def test_full_disk_keeps_the_last_checkpoint(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before = last.read_bytes(), adapter.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run("fit", "--ckpt_path", "last", "--trainer.max_steps", "2") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert (last.read_bytes(), adapter.read_bytes()) == before


def test_help_lists_classes_and_the_switch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for words in (
        "--default_callbacks",
        "callbacks.AdapterCheckpoint",
        "bishare.data.PyDocsData",
        "bishare.VeRAConfig",
    ):
        assert words in text


def test_help_of_a_class_shows_its_options_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--trainer.callbacks.help", "callbacks.Throughput"])
    text = capsys.readouterr().out
    assert "--trainer.callbacks.window" in text
    assert "AdapterCheckpoint" not in text


def test_trainer_gets_folder_logger_and_interval(config: Path, tmp_path: Path) -> None:
    trainer = BiShareCLI("fit", ["--config", str(config)], run=False).trainer
    assert trainer.default_root_dir == str(tmp_path / "run")
    assert Path(trainer.logger.log_dir) == tmp_path / "run"
    assert trainer.log_every_n_steps == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_users_model_summary_is_respected(config: Path, wanted: bool) -> None:
    options = ["--config", str(config), "--trainer.enable_model_summary", str(wanted).lower()]
    callbacks = BiShareCLI("fit", options, run=False).trainer.callbacks
    assert any(type(callback).__name__.endswith("ModelSummary") for callback in callbacks) == wanted


def test_mistake_is_found_among_the_causes() -> None:
    mistake, wrapped, again = UserError("r is 0; it must be at least 1."), ValueError("wrapped"), ValueError("again")
    wrapped.__cause__, again.__context__ = mistake, wrapped
    assert users_mistake(again) is mistake
    assert users_mistake(ValueError("a bug")) is None
