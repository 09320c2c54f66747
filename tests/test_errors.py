"""A user's mistake is a kind of ValueError."""

import pytest

from bishare.cli import COMMANDS, Command, main
from bishare.errors import UserError


def test_user_error_is_a_value_error() -> None:
    """jsonargparse reports a ValueError of a class as a mistake in the arguments."""
    assert issubclass(UserError, ValueError)


def test_command_line_prints_a_single_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(name: str, arguments: object) -> None:
        raise UserError("r is 0;\n  it must be at least 1.")

    monkeypatch.setitem(COMMANDS, "fail", Command("", ""))
    monkeypatch.setattr("bishare.cli._load", lambda name: fail)
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "bishare: r is 0; it must be at least 1.\n"
