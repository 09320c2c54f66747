"""A name given with --config stands for a file of the working folder, or else for a shipped file."""

from pathlib import Path

import pytest

from bishare.cli import COMMANDS, main
from bishare.commands.config.shipped_files import find_shipped, nearest, shipped_names, with_shipped
from bishare.errors import UserError
from tests.places import CONFIGS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "preview", "plan", "capacity"])
@pytest.mark.parametrize("name", ["llama7b", "llama7b.yaml", "configs/llama7b", "configs/llama7b.yaml"])
def test_every_spelling_finds_a_shipped_file(command: str, name: str) -> None:
    found = str(CONFIGS / "llama7b.yaml")
    assert with_shipped(command, ["--config", name, "--n", "1"]) == ["--config", found, "--n", "1"]
    assert with_shipped(command, [f"--config={name}"]) == [f"--config={found}"]


@pytest.mark.parametrize("name", ["smollm2", "compare/smollm2", "configs/compare/smollm2.yaml"])
def test_a_comparison_needs_no_folder(name: str) -> None:
    comparison = str(CONFIGS / "compare" / "smollm2.yaml")
    assert with_shipped("compare", ["--config", name, "--over", "llama7b"]) == [
        "--config",
        comparison,
        "--over",
        str(CONFIGS / "compare" / "over" / "llama7b.yaml"),
    ]


@pytest.mark.parametrize("mine", ["llama7b", "llama7b.yaml", "configs/llama7b.yaml"])
def test_the_working_folder_goes_first(mine: str, folder: Path) -> None:
    (folder / mine).parent.mkdir(exist_ok=True)
    (folder / mine).touch()
    assert with_shipped("fit", ["-c", "llama7b"]) == ["-c", mine]


@pytest.mark.parametrize("settings", ["{seed_everything: 1}", "seed_everything: 1", "", "-"])
def test_settings_in_place_of_a_name_stay(settings: str) -> None:
    assert with_shipped("fit", ["--config", settings]) == ["--config", settings]


def test_other_options_stay() -> None:
    options = ["--data", "nowhere.yaml", "--n=3", "llama7b"]
    assert with_shipped("fit", options) == options


@pytest.mark.parametrize(
    ("command", "option", "name", "line"),
    [
        ("fit", "--config", "smolm2", "there is no file smolm2; did you mean smollm2?"),
        ("compare", "--config", "my/rank.yaml", "there is no file my/rank.yaml; did you mean compare/ranks?"),
        ("compare", "--over", "llama7", "did you mean compare/over/llama7b?"),
        ("plan", "--config", "xyz", "there is no file xyz; `python -m bishare configs` lists"),
        ("plan", "-c", "../llama7b_vera", "-c: there is no file ../llama7b_vera; did you mean llama7b_vera"),
    ],
)
def test_unknown_name_comes_with_the_nearest(command: str, option: str, name: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        with_shipped(command, [option, name])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_cannot_leave_the_folder() -> None:
    assert find_shipped("../pyproject.toml") is None
    assert find_shipped("../tests/written/format1/lora/adapter_config.json") is None


def test_every_name_finds_its_file() -> None:
    names = shipped_names()
    assert set(names.values()) == {*CONFIGS.rglob("*.yaml"), *CONFIGS.rglob("*.json")}
    for name, file in names.items():
        assert find_shipped(name) == file


def test_all_files_are_near_where_any_will_do() -> None:
    assert "adapter/vera_r64" in nearest("vera_r6")


def test_plan_finds_a_shipped_file_and_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "llama7b", "--json"]) == 0
    assert '"base": "huggyllama/llama-7b"' in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "preview", "plan", "capacity", "compare"])
def test_a_command_names_the_nearest_file(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command in COMMANDS
    assert main([command, "--config", "smolm2"]) == 1
    assert capsys.readouterr().err.startswith("bishare: --config: there is no file smolm2; did you mean ")
