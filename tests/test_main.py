"""The command line as a user starts it: as a process, light until a command needs more, from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bishare.cli import COMMANDS
from tests.places import PROJECT


def python(*arguments: str, folder: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_help_lists_every_command() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = python("-m", "bishare", *arguments)
        assert done.returncode == 0, done.stderr
        for name, command in COMMANDS.items():
            assert name in done.stdout
            assert command.help in done.stdout


@pytest.mark.parametrize(
    "statement", ["import bishare", "from bishare.cli import main; main(['--help'])", "import bishare.__main__"]
)
def test_nothing_heavy_is_imported_early(statement: str) -> None:
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


def test_our_callbacks_are_found_beside_others(tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    assert "not ours" in python("-c", "import callbacks", folder=tmp_path).stderr  # without our guard it is found

    data = "lightning.pytorch.demos.boring_classes.BoringDataModule"
    options = ["--model.base", "x", "--model.adapter", "bishare.LoRAConfig", "--data", data]
    options += ["--trainer.callbacks", "callbacks.ParameterCount", "--print_config"]
    done = python("-m", "bishare", "fit", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "class_path: callbacks.ParameterCount" in done.stdout


def test_a_reader_may_stop() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bishare", "configs"]
    done = subprocess.run(command, cwd=PROJECT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
