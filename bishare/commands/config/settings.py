"""Reads a configuration without Lightning, since the import of Lightning takes longer than all the rest.

jsonargparse checks the section model as for ``fit``. Trainer and data are read as plain mappings in the same order:
the files, later files over earlier files, then the command line.
"""

from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentParser

from bishare.adapters.base import AdapterConfig
from bishare.adapters.registry import config_classes
from bishare.commands.config.messages import config_arguments, explain
from bishare.commands.config.trees import load, names_part, overlay
from bishare.errors import UserError
from bishare.models.dtypes import DtypeChoice

SECTIONS = ("trainer", "data")
CLASSIFICATION = "ClassificationData"
"""Name of the data module for classifiers; the class inherits from Lightning and is not imported here."""


class ModelSettings:
    """The arguments of ``BiShareModule``, for readers without Lightning. A test holds both signatures equal."""

    def __init__(
        self,
        base: str,
        adapter: AdapterConfig,
        *,
        base_dtype: DtypeChoice = "bfloat16",
        revision: str | None = None,
        trust_remote_code: bool = False,
        learning_rate: float = 1e-4,
        lr_factors: dict[str, float] | None = None,
        weight_decay: float = 0.0,
        warmup_steps: int | float = 100,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        max_new_tokens: int = 64,
    ) -> None:
        self.base, self.adapter = base, adapter
        self.base_dtype, self.revision, self.trust_remote_code = base_dtype, revision, trust_remote_code
        self.gradient_checkpointing = gradient_checkpointing


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration, and the options of ``plan`` itself."""

    model: ModelSettings
    trainer: Mapping[str, Any]
    data: Mapping[str, Any]
    """``class_path`` and ``init_args``; empty if no data is named."""
    files: Sequence[Path]
    architecture: str | None
    json: bool


def read_settings(arguments: Sequence[str]) -> Settings:
    """Read configuration files and options as ``fit`` would.

    Raises:
        UserError: For every mistake in them.
    """
    ours, theirs = _split(arguments)
    parser = _parser()
    try:
        config = parser.parse_args(theirs)
        built = parser.instantiate_classes(config)
    except ArgumentError as error:
        raise UserError(explain(str(error), arguments, list(parser.get_defaults().keys()))) from error
    except ValueError as error:
        raise UserError(str(_users_mistake(error))) from error
    files = [Path(str(file)) for file in config.config or []]
    trees = [load(file) for file in files]
    sections = {name: _section(name, files, trees, ours) for name in SECTIONS}
    return Settings(
        model=cast(ModelSettings, built.model),
        trainer=sections["trainer"],
        data=sections["data"],
        files=files,
        architecture=config.architecture,
        json=config.json,
    )


def is_classification(arguments: Sequence[str]) -> bool:
    """Whether the data of a command line are sentences to classify: then the base gets a classification head."""
    try:
        ours, theirs = _split(arguments)
        files = [Path(name) for name in config_arguments(theirs)]
        data = _section("data", files, [load(file) for file in files], ours)
    except UserError:
        return False  # the same error comes again when all arguments are parsed
    return str(data.get("class_path", "")).rpartition(".")[2] == CLASSIFICATION


def _parser() -> ArgumentParser:
    # An exception instead of usage, tip and exit becomes a single line.
    parser = ArgumentParser(
        prog="python -m bishare plan",
        description="Count parameters and estimate memory and files before anything is downloaded.",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="A configuration file, as for fit; several are merged.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    parser.add_argument("--architecture", type=str | None, help="config.json of the base, if it is not found.")
    config_classes()  # jsonargparse knows the short names of classes that are imported
    parser.add_class_arguments(ModelSettings, "model", sub_configs=True, instantiate=True)
    for name in (*SECTIONS, "seed_everything", "ckpt_path", "weights_only", "default_callbacks"):
        parser.add_argument(f"--{name}", type=Any, help="As for fit.")
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The options of trainer and data as (key, value), and all further arguments.

    Raises:
        UserError: An option of trainer or data has no value.
    """
    ours: list[tuple[str, str]] = []
    theirs: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name.removeprefix("--").partition(".")[0].rstrip("+") in SECTIONS and name.startswith("--"):
            given = value if equals else next(rest, None)
            if given is None:
                raise UserError(f"{name} needs a value.")
            ours.append((name.removeprefix("--"), given))
        else:
            theirs.append(argument)
    return ours, theirs


def _section(
    name: str, files: Sequence[Path], trees: Sequence[Mapping[str, Any]], options: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """A section as a mapping, from files and options.

    Args:
        name: ``trainer`` or ``data``.
        files: The configuration files.
        trees: Their content.
        options: Options of all sections as (key, value).
    """
    section: dict[str, Any] = {}
    for file, tree in zip(files, trees, strict=True):
        section = overlay(section, _part(tree.get(name), file.parent))
    for key, text in options:
        first, *path = key.split(".")
        if first != name:
            continue
        if not path:
            section = overlay(section, _part(yaml.safe_load(text), Path()))
            continue
        if name == "data" and path[0] not in ("class_path", "init_args"):
            path = ["init_args", *path]  # --data.batch_size is short for --data.init_args.batch_size
        section = overlay(section, _nested(path, yaml.safe_load(text)))
    return section


def _part(node: Any, folder: Path) -> dict[str, Any]:
    """A section written in place, as a class alone, or in a file of its own."""
    if names_part(node):
        return load(folder / node)
    if isinstance(node, str):
        return {"class_path": node}
    return dict(node or {})


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for the path a, b."""
    for key in reversed(path):
        value = {key: value}
    return cast(dict[str, Any], value)


def _users_mistake(error: BaseException) -> BaseException:
    """The UserError among the causes of an error, or the error itself."""
    return next((cause for cause in _causes(error) if isinstance(cause, UserError)), error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
