"""Checkpoints and configuration files of a run folder; ``test_command.py`` resumes whole runs."""

import os
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from bishare.commands.fit.command import BiShareCLI
from bishare.commands.fit.run_folder import SaveConfig, find_checkpoint, with_checkpoints
from bishare.errors import UserError


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callback = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
    return Trainer(default_root_dir=tmp_path, callbacks=[callback], **options)


def write_checkpoint(folder: Path, name: str, *, age: int = 0) -> str:
    file = folder / "checkpoints" / f"{name}.ckpt"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    os.utime(file, (1000 - age, 1000 - age))
    return str(file)


def test_a_checkpoint_callback_is_added(tmp_path: Path) -> None:
    other, checkpoint = with_checkpoints([Callback()], tmp_path)
    assert not isinstance(other, ModelCheckpoint)
    assert isinstance(checkpoint, ModelCheckpoint)
    assert checkpoint.dirpath == str(tmp_path)
    assert checkpoint.save_last


def test_a_named_checkpoint_callback_gets_the_folder(tmp_path: Path) -> None:
    own = ModelCheckpoint(every_n_train_steps=1)
    elsewhere = ModelCheckpoint(dirpath=tmp_path / "elsewhere")
    assert with_checkpoints([own, elsewhere], tmp_path) == [own, elsewhere]
    assert own.dirpath == str(tmp_path)
    assert elsewhere.dirpath == str(tmp_path / "elsewhere")


def test_last_is_the_newest_last_checkpoint(trainer: Trainer, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "last", age=5)
    write_checkpoint(tmp_path, "epoch=3")
    newest = write_checkpoint(tmp_path, "last-v1", age=2)
    assert find_checkpoint(trainer, "last", trains=True) == newest


def test_missing_last_checkpoint_is_an_error(trainer: Trainer, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "epoch=3")
    with pytest.raises(UserError, match="there is no last checkpoint"):
        find_checkpoint(trainer, "last", trains=False)


@pytest.mark.parametrize("left", ["checkpoints/epoch=0.ckpt", "adapter/adapter_config.json"])
def test_training_never_writes_over_a_run(trainer: Trainer, tmp_path: Path, left: str) -> None:
    assert find_checkpoint(trainer, None, trains=True) is None
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    with pytest.raises(UserError, match="already holds a run; resume it with --ckpt_path last"):
        find_checkpoint(trainer, None, trains=True)
    assert find_checkpoint(trainer, None, trains=False) is None


def test_named_checkpoint_must_exist(trainer: Trainer, tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path, "mine")
    assert find_checkpoint(trainer, file, trains=True) == file
    assert find_checkpoint(trainer, "best", trains=False) == "best"
    with pytest.raises(UserError, match=r"there is no checkpoint nowhere\.ckpt"):
        find_checkpoint(trainer, "nowhere.ckpt", trains=True)


def test_each_training_saves_its_own_configuration(bare_config: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "config-2.yaml"):
        cli = BiShareCLI("fit", ["--config", str(bare_config)], run=False)
        (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, SaveConfig))
        callback.setup(cli.trainer, cli.model, "validate")
        assert not (tmp_path / "run" / name).exists()
        callback.setup(cli.trainer, cli.model, "fit")
        assert (tmp_path / "run" / name).is_file()
