"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with a run folder, exact resumes and short errors.

The run folder ``trainer.default_root_dir`` holds TensorBoard's events, ``config.yaml``, ``checkpoints/`` and
``adapter/``.
"""

from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from bishare.callback_names import with_public_names
from bishare.commands.config.messages import explain
from bishare.commands.config.settings import is_classification
from bishare.commands.fit.class_list import class_list
from bishare.commands.fit.default_callbacks import HELP, SWITCH, with_defaults
from bishare.commands.fit.run_folder import SaveConfig, find_checkpoint, with_checkpoints
from bishare.commands.quiet import silence_known_noise
from bishare.errors import UserError
from bishare.training.classification import ClassificationModule
from bishare.training.module import BiShareModule


def run(command: str, arguments: Sequence[str]) -> None:
    """Run a command.

    Raises:
        UserError: For every mistake in the configuration.
    """
    silence_known_noise()
    try:
        BiShareCLI(command, arguments)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error


class FitParser(LightningArgumentParser):
    """Lightning's parser; the help ends with the project's classes, and configurations have public names."""

    @override
    def dump(self, *arguments: Any, **options: Any) -> str:
        return with_public_names(super().dump(*arguments, **options))

    @override
    def format_help(self, *arguments: Any) -> str:
        text = super().format_help(*arguments)
        # The help of a single class comes from a parser of the same type, without the command's options.
        return f"{text}\n{class_list()}" if f"--{SWITCH}" in text else text


class BiShareCLI(LightningCLI):
    """The command line of a command.

    Args:
        command: fit, validate, test or predict.
        arguments: The command line after the command's name.
        run: Whether to run the command; if not, model, data and trainer are only built.
    """

    def __init__(self, command: str, arguments: Sequence[str], *, run: bool = True) -> None:
        self._command, self._arguments, self._run = command, list(arguments), run
        # An exception instead of usage, tip and exit becomes a single line.
        parser_kwargs = {"prog": "python -m bishare", "exit_on_error": False, "default_env": False}
        self._classifies = is_classification(self._arguments)
        super().__init__(
            ClassificationModule if self._classifies else BiShareModule,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            trainer_defaults={
                "use_distributed_sampler": False,
                "default_root_dir": "runs/bishare",
                "log_every_n_steps": 1,  # Lightning's 50 leaves a short run without curves
                "enable_model_summary": False,  # ParameterCount counts by the parts of an adapter
            },
            seed_everything_default=0,
            parser_kwargs={**parser_kwargs, command: dict(parser_kwargs)},
            parser_class=FitParser,
            auto_configure_optimizers=False,
            args=[command, *arguments],
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning calls it on the instance
        """The given command alone, since the parser of each command takes a second to build."""
        return {self._command: super().subcommands()[self._command]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(f"--{SWITCH}", type=bool, default=True, help=HELP)
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
        """Do nothing: hyper-parameters inside a checkpoint must not override the user's."""

    @override
    def before_instantiate_classes(self) -> None:
        if self._get(self.config, "data") is None:
            raise UserError("data is not given; set data.class_path, for example to bishare.data.PyDocsData.")

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps the error of a class about its arguments into a ValueError.
            cause = users_mistake(error)
            if cause is None:
                raise
            raise UserError(str(cause)) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        run_folder = Path(config["default_root_dir"])
        if config["logger"] in (None, True):
            kwargs["logger"] = TensorBoardLogger(save_dir=run_folder, name="", version="")
        given = config["callbacks"] or []
        callbacks = given if isinstance(given, list) else [given]
        if self._get(self.config, SWITCH):
            callbacks = with_defaults(self._command, callbacks, config)
        if config["enable_checkpointing"] is not False:
            callbacks = with_checkpoints(callbacks, run_folder / "checkpoints")
        kwargs["callbacks"] = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            # The Trainer raises plain ValueErrors about its arguments.
            raise UserError(str(error)) from error

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if self._run:
            super()._run_subcommand(subcommand)

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        # fast_dev_run writes nothing and starts from nothing.
        if not self._get(self.config_init, "trainer")["fast_dev_run"]:
            trains = self._command == "fit"
            arguments["ckpt_path"] = find_checkpoint(self.trainer, arguments["ckpt_path"], trains=trains)
        return arguments


def users_mistake(error: BaseException | None) -> BaseException | None:
    """The cause of an error that is a mistake in the user's input; None for a bug."""
    while error is not None and not isinstance(error, (UserError, MisconfigurationException)):
        error = error.__cause__ or error.__context__
    return error


def _parsing_message(error: ArgumentError) -> str:
    """The first complaint of jsonargparse.

    A wrong part beside its configuration file is read a second time, and jsonargparse then complains of a loop. The
    complaint about the part is among the causes.
    """
    cause: BaseException | None = error
    while cause is not None and not str(cause).startswith("Config file loop detected"):
        cause = cause.__context__
    if cause is None or cause.__context__ is None:
        return str(error)
    return str(error).replace(str(cause), str(cause.__context__))
