"""fit, validate, test and predict: LightningCLI with one run folder, exact resumes and one-line errors.

A run lives in ``trainer.default_root_dir``: TensorBoard's events, ``config.yaml``, ``checkpoints/`` and ``adapter/``.
"""

from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from bishare.commands.config.messages import explain
from bishare.commands.config.settings import is_classification
from bishare.commands.quiet import silence_known_noise
from bishare.errors import UserError
from bishare.training.classification import ClassificationModule
from bishare.training.module import BiShareModule


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one of the four commands.

    Raises:
        UserError: For every mistake in the configuration.
    """
    silence_known_noise()
    try:
        BiShareCLI(command, arguments)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error


class BiShareCLI(LightningCLI):
    """The command line of one command.

    Args:
        command: fit, validate, test or predict.
        arguments: What follows it.
        run: Whether to run it; otherwise model, data and trainer are only built.
    """

    def __init__(self, command: str, arguments: Sequence[str], *, run: bool = True) -> None:
        self._command, self._arguments, self._run = command, list(arguments), run
        # An exception instead of usage, tip and exit: it becomes one line.
        parser_kwargs = {"prog": "python -m bishare", "exit_on_error": False, "default_env": False}
        self._classifies = is_classification(self._arguments)
        super().__init__(
            ClassificationModule if self._classifies else BiShareModule,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            trainer_defaults={"use_distributed_sampler": False, "default_root_dir": "runs/bishare"},
            seed_everything_default=0,
            parser_kwargs={**parser_kwargs, command: dict(parser_kwargs)},
            auto_configure_optimizers=False,
            args=[command, *arguments],
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning calls it on the instance
        """The one command that is wanted: the parser of each takes a second to build."""
        return {self._command: super().subcommands()[self._command]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.base", "data.init_args.base")
        if self._classifies:
            parser.link_arguments("data.init_args.task", "model.task")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            known = self._parser(self._command).get_defaults().keys()
            raise UserError(explain(_parsing_message(error), self._arguments, list(known))) from error

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the hyper-parameters inside a checkpoint override the user's."""

    @override
    def before_instantiate_classes(self) -> None:
        if self._get(self.config, "data") is None:
            raise UserError("data is not given; set data.class_path, for example to bishare.data.PyDocsData.")

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what a class says about its arguments into a ValueError of its own.
            if (cause := users_mistake(error)) is None:
                raise
            raise UserError(str(cause)) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        run_folder = Path(config["default_root_dir"])
        if config["logger"] in (None, True):
            kwargs["logger"] = TensorBoardLogger(save_dir=run_folder, name="", version="")
        if config["enable_checkpointing"] is not False:
            kwargs["callbacks"] = _with_checkpoints(config["callbacks"], run_folder / "checkpoints")
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:  # what the Trainer says about its arguments
            raise UserError(str(error)) from error

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if self._run:
            super()._run_subcommand(subcommand)

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        arguments["ckpt_path"] = self._checkpoint(arguments["ckpt_path"])
        return arguments

    def _checkpoint(self, path: str | None) -> str | None:
        """The checkpoint to start from; ``last`` is never quietly a fresh start, nor is an old run written over."""
        folder = Path(self.trainer.default_root_dir)
        callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        folders = {Path(callback.dirpath) for callback in callbacks if callback.dirpath}
        if self._get(self.config_init, "trainer")["fast_dev_run"]:
            return path  # it writes nothing
        found = sorted((file for f in folders for file in f.glob("*.ckpt")), key=lambda file: file.stat().st_mtime)
        if path == "last":
            last = [file for file in found if file.stem.startswith("last")]
            if not last:
                raise UserError(f"there is no last checkpoint in {folder}; leave out --ckpt_path to start afresh.")
            return str(last[-1])
        if path is not None and path not in ("best", "hpc") and not Path(path).exists():
            raise UserError(f"ckpt_path: there is no checkpoint {path}.")
        holds_a_run = bool(found) or (folder / "adapter").exists()
        if path is None and self._command == "fit" and holds_a_run:
            raise UserError(
                f"{folder} already holds a run; resume it with --ckpt_path last, "
                "or choose another folder with --trainer.default_root_dir."
            )
        return path


class SaveConfig(SaveConfigCallback):
    """Writes the configuration of a training to config.yaml, config-2.yaml, ... of its run folder."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.already_saved or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        number, file = 1, folder / "config.yaml"
        while file.exists():
            number += 1
            file = folder / f"config-{number}.yaml"
        self.parser.save(self.config, file, skip_none=False, multifile=False)
        self.already_saved = True


def _with_checkpoints(callbacks: list[Callback] | Callback | None, folder: Path) -> list[Callback]:
    """The callbacks with a ModelCheckpoint among them, which writes to a folder that a later run finds again."""
    given = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks is not None else []
    checkpoints = [callback for callback in given if isinstance(callback, ModelCheckpoint)]
    for checkpoint in checkpoints:
        checkpoint.dirpath = checkpoint.dirpath or str(folder)
    return given if checkpoints else [*given, ModelCheckpoint(dirpath=folder, save_last=True)]


def users_mistake(error: BaseException | None) -> BaseException | None:
    """The error among the causes of this one that is about the user's input; None if it is a bug."""
    while error is not None and not isinstance(error, (UserError, MisconfigurationException)):
        error = error.__cause__ or error.__context__
    return error


def _parsing_message(error: ArgumentError) -> str:
    """What jsonargparse says is wrong.

    A wrong part that lies beside the file naming it is read a second time, and jsonargparse then complains of the
    loop that it has made itself; what it had to say before is among the causes.
    """
    cause: BaseException | None = error
    while cause is not None and not str(cause).startswith("Config file loop detected"):
        cause = cause.__context__
    if cause is None or cause.__context__ is None:
        return str(error)
    return str(error).replace(str(cause), str(cause.__context__))
