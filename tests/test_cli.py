"""The table of commands, exit codes, and one line for each mistake."""

import errno
import os
import sys
from collections.abc import Callable

import pytest

from bishare import __version__
from bishare.cli import COMMANDS, KEPT_KERNELS, Command, _load, main
from bishare.errors import UserError


def test_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fti"]) == 2
    assert "fti is not a command; did you mean fit?" in capsys.readouterr().err
    assert main(["xyz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("given", [None, "7"])
def test_kept_kernels_are_few_unless_set(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setitem(COMMANDS, "nothing", Command("", "builtins:print"))
    assert main(["nothing"]) == 0
    assert os.environ[name] == (given or KEPT_KERNELS)


@pytest.fixture
def command_that_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], str]:
    """A function that makes a command raise this, and returns the command's name."""

    def install(error: BaseException) -> str:
        def function(name: str, arguments: list[str]) -> None:
            raise error

        monkeypatch.setattr(sys.modules[__name__], "raising_function", function, raising=False)
        monkeypatch.setitem(sys.modules, "module_of_the_raising_command", sys.modules[__name__])
        monkeypatch.setitem(COMMANDS, "break", Command("", "module_of_the_raising_command:raising_function"))
        return "break"

    return install


def stopped_by_lightning() -> SystemExit:
    """What is left of a KeyboardInterrupt after Lightning's handler."""
    stop = SystemExit(1)
    stop.__context__ = KeyboardInterrupt()
    return stop


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("lr is -1;\n  it must be positive."), 1, "bishare: lr is -1; it must be positive.\n"),
        (KeyboardInterrupt(), 130, "bishare: interrupted.\n"),
        (stopped_by_lightning(), 130, "bishare: interrupted.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.ckpt"), 1, "bishare: No space left on device: a.ckpt\n"),
        (OSError(errno.EACCES, "Permission denied", "runs"), 1, "bishare: Permission denied: runs\n"),
    ],
)
def test_mistake_is_one_line_and_exit_code(
    error: BaseException,
    code: int,
    line: str,
    command_that_raises: Callable[[BaseException], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([command_that_raises(error)]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), FileNotFoundError(2, "a bug")])
def test_bug_keeps_its_traceback(error: Exception, command_that_raises: Callable[[BaseException], str]) -> None:
    with pytest.raises(type(error), match="a bug"):
        main([command_that_raises(error)])


def test_other_ranks_name_themselves(
    command_that_raises: Callable[[BaseException], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert main([command_that_raises(UserError("no."))]) == 1
    assert capsys.readouterr().err == "bishare (rank 3): no.\n"


def test_every_command_is_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in shown
        assert command.help in shown
        assert callable(_load(name))


def test_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bishare {__version__}\n"
