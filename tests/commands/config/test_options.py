"""The fields of a dataclass are a command's options."""

from dataclasses import dataclass
from typing import Any

import pytest

from bishare.commands.config.options import build_options, parse_options
from bishare.errors import UserError


@dataclass(kw_only=True)
class Options:
    """Options of an example."""

    adapter: str
    """Folder of the adapter."""
    num_rows: int = 32
    """Rows to read."""

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise UserError(f"num_rows is {self.num_rows}; it must be at least 1.")


def parse(*arguments: str) -> Options:
    return parse_options(Options, "example", arguments, description="Show an example.")


def test_options_are_parsed_by_type() -> None:
    assert parse("--adapter", "here", "--num_rows=4") == Options(adapter="here", num_rows=4)
    assert parse("--adapter", "here").num_rows == 32


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "adapter is not given."),
        (["--adapter", "a", "--num_raws", "1"], "--num_raws is not known; did you mean --num_rows?"),
        (["--adapter", "a", "--num_rows", "many"], "num_rows is many; it must be a whole number."),
        (["--adapter", "a", "--num_rows", "0"], "num_rows is 0; it must be at least 1."),
    ],
)
def test_mistake_is_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert str(error.value) == line


def test_help_shows_docstrings_of_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "python -m bishare example" in shown
    assert "Folder of the adapter." in shown


def test_mapping_becomes_options() -> None:
    assert build_options(Options, {"adapter": "a", "num_rows": 4}, key="part") == Options(adapter="a", num_rows=4)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "part: adapter is not given."),
        ({"adapter": "a", "num_raws": 1}, "part: num_raws is not known; did you mean num_rows?"),
        ({"adapter": "a", "num_rows": "many"}, "part: num_rows is many; it must be a whole number."),
        ({"adapter": "a", "num_rows": 0}, "num_rows is 0; it must be at least 1."),
    ],
)
def test_mistake_in_a_mapping_is_named(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        build_options(Options, values, key="part")
    assert str(error.value) == line
