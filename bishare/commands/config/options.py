"""Reads options into a dataclass, from a command line or from a mapping: fields are options, docstrings the help."""

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from bishare.commands.config.messages import explain
from bishare.errors import UserError

T = TypeVar("T")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_options(options: type[T], command: str, arguments: Sequence[str], *, description: str) -> T:
    """Parse the options of a command line.

    Args:
        options: A dataclass.
        command: Name of the command, for the help.
        arguments: The command line after the command's name.
        description: Purpose of the command, for the help.

    Returns:
        An instance of ``options``.

    Raises:
        UserError: For every mistake in the arguments.
    """
    # An exception instead of usage, tip and exit becomes a single line.
    parser = ArgumentParser(
        prog=f"python -m bishare {command}", description=description, exit_on_error=False, default_env=False
    )
    parser.add_class_arguments(options)
    try:
        namespace = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(explain(str(error), arguments, list(parser.get_defaults().keys()))) from error
    return options(**namespace.as_dict())


def build_options(options: type[T], values: Mapping[str, Any], *, key: str) -> T:
    """The options of one part of a configuration.

    Args:
        options: A dataclass.
        values: Options as the configuration gives them.
        key: Dotted key of the part, named in errors.

    Raises:
        UserError: For every mistake in the values.
    """
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(options)
    try:
        namespace = parser.parse_object(dict(values))
    except ArgumentError as error:
        raise UserError(f"{key}: {explain(str(error), [], list(parser.get_defaults().keys()))}") from error
    return options(**namespace.as_dict())
