"""Configuration files and checkpoints in the run folder ``trainer.default_root_dir``."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from bishare.callback_names import install
from bishare.errors import UserError


class SaveConfig(SaveConfigCallback):
    """Writes the configuration of a training to config.yaml, config-2.yaml, ... of the run folder."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.already_saved or not trainer.is_global_zero:
            return
        install()  # a spawned process has not come through the command line
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        number, file = 1, folder / "config.yaml"
        while file.exists():
            number += 1
            file = folder / f"config-{number}.yaml"
        self.parser.save(self.config, file, skip_none=False, multifile=False)
        self.already_saved = True


def with_checkpoints(callbacks: Sequence[Callback], folder: Path) -> list[Callback]:
    """Add a ModelCheckpoint unless the callbacks have one.

    Args:
        callbacks: Callbacks of the configuration; a ModelCheckpoint without a folder gets ``folder``.
        folder: Folder of the run's checkpoints, searched by a resumed run.
    """
    checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    for checkpoint in checkpoints:
        checkpoint.dirpath = checkpoint.dirpath or str(folder)
    if checkpoints:
        return list(callbacks)
    return [*callbacks, ModelCheckpoint(dirpath=folder, save_last=True)]


def find_checkpoint(trainer: Trainer, path: str | None, *, trains: bool) -> str | None:
    """The checkpoint to start from.

    Args:
        trainer: The run folder and the folders of the ModelCheckpoints are searched.
        path: The user's choice: a file, ``last``, ``best``, ``hpc`` or None.
        trains: Whether the command writes to the run folder.

    Returns:
        A file for ``last``, else ``path``.

    Raises:
        UserError: The checkpoint does not exist, or a fresh training would write over an old run.
    """
    folder = Path(trainer.default_root_dir)
    files: set[Path] = set()
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            files |= set(Path(callback.dirpath).glob("*.ckpt"))
    if path == "last":
        last = [file for file in files if file.stem.startswith("last")]
        if not last:
            raise UserError(f"there is no last checkpoint in {folder}; leave out --ckpt_path to start afresh.")
        return str(max(last, key=lambda file: file.stat().st_mtime))
    if path is not None and path not in ("best", "hpc") and not Path(path).exists():
        raise UserError(f"ckpt_path: there is no checkpoint {path}.")
    holds_a_run = bool(files) or (folder / "adapter").exists()
    if path is None and trains and holds_a_run:
        raise UserError(
            f"{folder} already holds a run; resume it with --ckpt_path last, "
            "or choose another folder with --trainer.default_root_dir."
        )
    return path
