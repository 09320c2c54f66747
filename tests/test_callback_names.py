"""``callbacks.NAME`` means bishare's class first, then the user's."""

import ast
import pickle
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Callback

import bishare.callbacks
from bishare.callback_names import install, with_public_names
from bishare.cli import main
from tests.places import PROJECT

MINE = "from lightning.pytorch import Callback\nclass Mine(Callback): pass\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """A function to write a file of the user's into the working folder; the process has loaded no callbacks before."""

    def write_file(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "callbacks"}
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.chdir(tmp_path)
    for name in before:
        del sys.modules[name]
    yield write_file
    for name in [name for name in sys.modules if name.split(".")[0] == "callbacks"]:
        del sys.modules[name]
    sys.modules.update(before)


def named(path: str) -> object:
    """The object of a ``class_path`` on the command line."""
    install()
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def test_both_names_mean_one_class() -> None:
    import callbacks

    assert len(callbacks.__all__) >= 9
    for name in callbacks.__all__:
        assert getattr(callbacks, name) is getattr(bishare.callbacks, name)
        assert getattr(callbacks, name).__module__.startswith("bishare.callbacks.")


def test_a_submodule_is_loaded_once() -> None:
    assert import_module("callbacks.merging") is import_module("bishare.callbacks.merging")


def test_callbacks_import_each_other_relatively() -> None:
    for file in PROJECT.glob("callbacks/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert str(node.module).split(".")[0] != "callbacks", f"{file} would not run from a wheel"


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("callbacks.py", "callbacks.Mine"),
        ("callbacks/__init__.py", "callbacks.Mine"),
        ("callbacks/mine.py", "callbacks.mine.Mine"),
        ("callbacks/checkpoint.py", "callbacks.checkpoint.Mine"),
    ],
    ids=["module", "package", "submodule", "submodule with a name of ours"],
)
def test_name_of_the_users_is_found(file: str, path: str, write: Callable[[str, str], None]) -> None:
    write(file, MINE)
    mine = named(path)
    assert isinstance(mine, type)
    assert issubclass(mine, Callback)
    assert Path(sys.modules["bishare.callbacks"].__file__ or "").parents[1] == PROJECT


def test_our_names_go_first(write: Callable[[str, str], None]) -> None:
    write("callbacks/__init__.py", "from .checkpoint import Mine\nclass AdapterCheckpoint: pass\n")
    write("callbacks/checkpoint.py", MINE)
    assert named("callbacks.AdapterCheckpoint") is bishare.callbacks.AdapterCheckpoint
    assert named("callbacks.Mine") is named("callbacks.checkpoint.Mine")
    assert import_module("callbacks.run") is sys.modules["bishare.callbacks.run"]


def test_the_users_module_runs_on_demand(write: Callable[[str, str], None]) -> None:
    write("callbacks.py", "raise RuntimeError('not ready')\n")
    assert named("callbacks.RunSummary") is bishare.callbacks.RunSummary
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not ready"):
            named("callbacks.Mine")


def test_a_name_of_nobody_is_missing(write: Callable[[str, str], None]) -> None:
    write("callbacks.py", MINE)
    with pytest.raises(AttributeError, match="module 'callbacks' has no attribute 'Nobodys'"):
        named("callbacks.Nobodys")
    assert {"Mine", "RunSummary"} <= set(dir(import_module("callbacks")))


def test_a_module_imported_before_stays(write: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    write("callbacks.py", MINE)
    monkeypatch.syspath_prepend(Path.cwd())
    before = import_module("callbacks")
    assert named("callbacks.Mine") is before.Mine
    assert named("callbacks.Throughput") is bishare.callbacks.Throughput


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("- class_path: bishare.callbacks.RunSummary\n", "- class_path: callbacks.RunSummary\n"),
        ('{"class_path": "bishare.callbacks.Throughput"}', '{"class_path": "callbacks.Throughput"}'),
        ("- class_path: bishare.callbacks_of_mine.X\n", "- class_path: bishare.callbacks_of_mine.X\n"),
        ("questions: [What is bishare.callbacks.RunSummary?]", "questions: [What is bishare.callbacks.RunSummary?]"),
    ],
)
def test_saved_configurations_have_public_names(given: str, public: str) -> None:
    assert with_public_names(given) == public


def test_our_callbacks_can_go_to_a_new_process() -> None:
    assert b"cbishare.callbacks" in pickle.dumps(bishare.callbacks.RunSummary, protocol=0)


def test_a_configuration_names_both(write: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "callbacks.py",
        "from __future__ import annotations\nfrom pathlib import Path\n"
        + MINE.replace("pass", "\n    def __init__(self, folder: Path | None = None) -> None:\n        pass"),
    )
    data = "lightning.pytorch.demos.boring_classes.BoringDataModule"
    options = ["--model.base", "x", "--model.adapter", "bishare.LoRAConfig", "--data", data, "--print_config"]
    ours = ["--trainer.callbacks+", "callbacks.ParameterCount"]
    with pytest.raises(SystemExit) as end:
        main(["fit", *options, *ours, "--trainer.callbacks+", "callbacks.Mine", "--trainer.callbacks.folder", "here"])
    assert not end.value.code
    printed = capsys.readouterr().out
    assert "class_path: callbacks.ParameterCount" in printed
    assert "  - class_path: callbacks.Mine\n    init_args:\n      folder: here\n" in printed
