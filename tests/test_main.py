"""The command line as a user starts it: as a process, light until a command needs more, from any folder."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bishare.cli import COMMANDS, KEPT_KERNELS, Command, main
from bishare.errors import UserError
from tests.places import PROJECT


def python(*arguments: str, folder: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_help_lists_every_command_with_and_without_arguments() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = python("-m", "bishare", *arguments)
        assert done.returncode == 0, done.stderr
        for name, command in COMMANDS.items():
            assert name in done.stdout
            assert command.help in done.stdout


@pytest.mark.parametrize(
    "statement", ["import bishare", "from bishare.cli import main; main(['--help'])", "import bishare.__main__"]
)
def test_nothing_heavy_is_imported_before_a_command_runs(statement: str) -> None:
    heavy = "{'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'callbacks'}"
    done = python("-c", f"import sys; {statement}; print(*({heavy} & set(sys.modules)), file=sys.stderr)")
    assert done.stderr.strip() == ""


def test_public_names_are_imported_on_first_use() -> None:
    import bishare

    for name in bishare.__all__:
        assert getattr(bishare, name).__name__ == name
        assert name in dir(bishare)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        bishare.no_such_name  # noqa: B018  # the access is the test


def test_our_callbacks_are_found_in_a_folder_with_callbacks_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    assert "not ours" in python("-c", "import callbacks", folder=tmp_path).stderr  # without our guard it is found

    data = "lightning.pytorch.demos.boring_classes.BoringDataModule"
    options = ["--model.base", "x", "--model.adapter", "bishare.LoRAConfig", "--data", data]
    options += ["--trainer.callbacks", "callbacks.ParameterCount", "--print_config"]
    done = python("-m", "bishare", "fit", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "class_path: callbacks.ParameterCount" in done.stdout


def test_an_unknown_command_comes_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fti"]) == 2
    assert "fti is not a command; did you mean fit?" in capsys.readouterr().err
    assert main(["xyz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("given", [None, "7"])
def test_kernels_for_lengths_that_hardly_come_again_are_not_kept_unless_the_user_says_so(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_a_mistake_ends_in_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    command_that_raises: Callable[[BaseException], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([command_that_raises(error)]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), FileNotFoundError(2, "a bug")])
def test_a_bug_keeps_its_traceback(error: Exception, command_that_raises: Callable[[BaseException], str]) -> None:
    with pytest.raises(type(error), match="a bug"):
        main([command_that_raises(error)])


def test_a_process_other_than_the_first_says_which_it_is(
    command_that_raises: Callable[[BaseException], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert main([command_that_raises(UserError("no."))]) == 1
    assert capsys.readouterr().err == "bishare (rank 3): no.\n"
