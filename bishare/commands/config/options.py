"""Reads a command's options into a dataclass: its fields are the options, their docstrings the help."""

from argparse import ArgumentError
from collections.abc import Sequence
from typing import TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from bishare.commands.config.messages import explain
from bishare.errors import UserError

T = TypeVar("T")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_options(options: type[T], command: str, arguments: Sequence[str], *, description: str) -> T:
    """The options as they were given.

    Args:
        options: A dataclass.
        command: Name of the command, for its help.
        arguments: Of the command line.
        description: What the command does, for its help.

    Raises:
        UserError: For every mistake in the arguments.
    """
    # An exception instead of usage, tip and exit: it becomes one line.
    parser = ArgumentParser(
        prog=f"python -m bishare {command}", description=description, exit_on_error=False, default_env=False
    )
    parser.add_class_arguments(options)
    try:
        namespace = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(explain(str(error), arguments, list(parser.get_defaults().keys()))) from error
    return options(**namespace.as_dict())
