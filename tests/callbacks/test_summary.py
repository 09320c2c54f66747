"""What is printed around a run is true."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from bishare.training.module import BiShareModule
from callbacks import AdapterCheckpoint, RunSummary
from callbacks.summary import duration, loss_line, tensorboard_command


def test_losses_equal_those_of_validate(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (untrained,) = tiny_trainer(logger=False).validate(tiny_module(), tiny_data, verbose=False)
    module = tiny_module()
    tiny_trainer(RunSummary()).fit(module, tiny_data)
    printed = capsys.readouterr().out
    (trained,) = tiny_trainer(logger=False).validate(module, tiny_data, verbose=False)
    before, after = untrained["val/loss"], trained["val/loss"]
    assert before != pytest.approx(after)
    assert f"loss {before:.3f} before, {after:.3f} after: {after - before:+.3f} nats" in printed
    assert scalars("val/loss")[0] == pytest.approx(before)


def test_start_tells_model_method_data_and_strategy(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_trainer(RunSummary(), max_steps=1).fit(tiny_module(), tiny_data)
    printed = capsys.readouterr().out
    assert "tiny, float32" in printed
    assert "bishare (transform slice, r_local 1, r_intra 2, r_inter 3" in printed
    assert "on q, k, v, up, down of 3 layers" in printed
    assert "TinyData, 4 examples per step in 2 micro-batches, 6 steps per epoch, at most 1 step\n" in printed
    assert "1 x cpu, SingleDeviceStrategy, precision 32-true" in printed


def test_the_end_tells_where_everything_is(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    tiny_trainer(RunSummary(), AdapterCheckpoint()).fit(tiny_module(), tiny_data)
    printed = capsys.readouterr().out
    assert f"  {tmp_path.name}/adapter" in printed
    assert f"tensorboard --logdir {tmp_path.name}" in printed
    assert "for 6 optimizer steps" in printed


def test_partial_sanity_check_is_no_loss_before(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_trainer(RunSummary(), num_sanity_val_steps=2).fit(tiny_module(), tiny_data)
    assert "before: not measured; num_sanity_val_steps: -1 does" in capsys.readouterr().out


def test_resumed_run_keeps_its_first_loss(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = ModelCheckpoint(tmp_path, filename="last")
    first = RunSummary()
    tiny_trainer(first, save, enable_checkpointing=True).fit(tiny_module(), tiny_data)
    capsys.readouterr()
    trainer = tiny_trainer(RunSummary(), max_epochs=2)
    trainer.fit(tiny_module(), tiny_data, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert f"loss {first._before:.3f} before" in capsys.readouterr().out


def test_summary_is_last_on_the_console(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_trainer(RunSummary(), RichProgressBar(), enable_progress_bar=True).fit(tiny_module(), tiny_data)
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last.startswith("logs ")


def test_loss_line_says_what_is_missing() -> None:
    assert loss_line(3.0, (8, 2.5), 8) == "loss 3.000 before, 2.500 after: -0.500 nats"
    assert "2.500 at step 6" in loss_line(3.0, (6, 2.5), 8)
    assert "no validation ran" in loss_line(3.0, None, 8)


def test_durations_read_naturally() -> None:
    assert [duration(s) for s in (4.4, 61, 3599.6, 7260)] == ["4 s", "1 min 1 s", "1 h 0 min", "2 h 1 min"]


def test_tensorboard_command_runs_from_any_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / ".venv" / "bin" / "tensorboard"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert tensorboard_command(tmp_path / "runs" / "a b") == ".venv/bin/tensorboard --logdir 'runs/a b'"
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    assert tensorboard_command(tmp_path / "runs") == "tensorboard --logdir runs"
