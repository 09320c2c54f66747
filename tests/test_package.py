"""The package as built, installed and used outside a clone."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bishare
from bishare.cli import main
from bishare.version import __version__
from tests.byte_base import write_byte_base
from tests.places import CONFIGS, PROJECT

MINE = """
from lightning.pytorch import Callback

class Mine(Callback):
    def on_fit_end(self, trainer, pl_module):
        print("Mine was here")
"""


def call(*command: str | Path, folder: Path) -> str:
    """Output of a command in a folder and an environment without the clone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PROJECT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist as a folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"bishare-{__version__}"


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; the dependencies are borrowed from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python")
    call(
        *pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", next(built.glob("*.whl")), folder=folder
    )
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # Files that end with .pth have no effect in a borrowed folder, such as the one that leads to this clone.
    (site_packages(folder) / "borrowed.pth").write_text("\n".join(borrowed))
    return folder


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A working folder with a tiny base, rows, a configuration and callbacks of the user's own."""
    rows = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 11)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "callbacks.py").write_text(MINE)
    content = {
        "model": {"base": write_byte_base(tmp_path / "base"), "adapter": {"class_path": "bishare.LoRAConfig"}},
        "data": {
            "class_path": "bishare.data.InstructionData",
            "init_args": {"path": "rows.jsonl", "batch_size": 2, "num_validation": 2},
        },
        "trainer": {"accelerator": "cpu", "default_root_dir": "run", "max_steps": 2},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def test_the_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "bishare/version.py"
    assert bishare.__version__ == __version__
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bishare {__version__}\n"


@pytest.mark.slow
def test_the_sdist_is_whole(unpacked: Path) -> None:
    if not (PROJECT / ".git").exists():
        pytest.skip("only a clone knows which files belong to the project")
    listed = call("git", "ls-files", "-z", folder=PROJECT).split("\0")
    missing = [file for file in listed if file and not (unpacked / file).is_file()]
    assert not missing
    assert {path.name for path in unpacked.iterdir()} == {"PKG-INFO", *(f.split("/")[0] for f in listed if f)}


@pytest.mark.slow
def test_the_sdist_tests_itself(unpacked: Path) -> None:
    tests = ("tests/test_shipped.py", "tests/test_callback_names.py", "tests/commands/test_configs.py")
    printed = call(sys.executable, "-m", "pytest", "-q", *tests, folder=unpacked)
    assert " passed" in printed
    assert "failed" not in printed


@pytest.mark.slow
def test_the_wheel_holds_one_package(environment: Path) -> None:
    folder = site_packages(environment)
    metadata = f"bishare-{__version__}.dist-info"
    assert {path.name for path in folder.iterdir()} == {"bishare", metadata, "borrowed.pth"}
    installed = {path.relative_to(folder).as_posix() for path in (folder / "bishare").rglob("*") if path.is_file()}
    wanted = {path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("bishare/**/*") if path.is_file()}
    wanted = {file for file in wanted if "__pycache__" not in file} - {"bishare/callbacks.py"}
    for file in [*PROJECT.glob("callbacks/*.py"), *CONFIGS.rglob("*.yaml"), *CONFIGS.rglob("*.json")]:
        wanted.add(f"bishare/{file.relative_to(PROJECT).as_posix()}")
    assert installed == wanted
    assert {"bishare/py.typed", "bishare/commands/evaluate/_commonsense_template_yaml"} <= installed


@pytest.mark.slow
def test_plan_finds_a_shipped_file_by_name(environment: Path, tmp_path: Path) -> None:
    printed = call(environment / "bin" / "bishare", "plan", "--config", "llama7b", "--json", folder=tmp_path)
    assert json.loads(printed)["base"] == "huggyllama/llama-7b"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fit_without_callbacks_leaves_adapter_and_curves(environment: Path, users_folder: Path) -> None:
    (users_folder / "callbacks.py").write_text("raise RuntimeError('not asked for')")
    call(environment / "bin" / "bishare", "fit", "--config", "mine.yaml", folder=users_folder)
    run = users_folder / "run"
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    curves = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    assert {"learning_rate/local.A", "train/grad_norm", "val/loss"} <= set(curves)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("bin/bishare",), ("bin/python", "-m", "bishare")], ids=["script", "module"])
def test_fit_takes_callbacks_of_both(command: tuple[str, ...], environment: Path, users_folder: Path) -> None:
    program, *options = command
    options += ["fit", "--config", "mine.yaml", "--trainer.callbacks+", "callbacks.RankMonitor"]
    printed = call(environment / program, *options, "--trainer.callbacks+", "callbacks.Mine", folder=users_folder)
    assert "Mine was here" in printed
    saved = yaml.safe_load((users_folder / "run" / "config.yaml").read_text())
    classes = [callback["class_path"] for callback in saved["trainer"]["callbacks"]]
    assert classes == ["callbacks.RankMonitor", "callbacks.Mine"]


@pytest.mark.slow
def test_callbacks_outside_the_command_line_are_the_users(environment: Path, users_folder: Path) -> None:
    python = environment / "bin" / "python"
    both = "import callbacks, bishare.callbacks as ours; ours.RunSummary; print(callbacks.__file__, ours.__file__)"
    printed = call(python, "-c", both, folder=users_folder).split()
    ours = site_packages(environment) / "bishare" / "callbacks" / "__init__.py"
    assert printed == [str(users_folder / "callbacks.py"), str(ours)]
    (users_folder / "callbacks.py").unlink()
    missing = "import bishare, importlib.util; print(importlib.util.find_spec('callbacks'))"
    assert call(python, "-c", missing, folder=users_folder) == "None\n"
