"""Configurations read without Lightning, as ``fit`` reads them."""

import inspect
from pathlib import Path

import pytest

from bishare.adapters.bishare import BiShareConfig
from bishare.commands.config.settings import ModelSettings, read_settings
from bishare.errors import UserError
from bishare.training.classification import ClassificationModule
from bishare.training.module import BiShareModule


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "adapter.yaml").write_text("class_path: bishare.BiShareConfig\ninit_args:\n  r_local: 3\n")
    (tmp_path / "trainer.yaml").write_text("devices: 2\ncallbacks:\n  - class_path: callbacks.RunSummary\n")
    file = tmp_path / "config.yaml"
    file.write_text(
        "model:\n  base: me/mine\n  adapter: adapter.yaml\ntrainer: trainer.yaml\n"
        "data:\n  class_path: bishare.data.PyDocsData\n  init_args:\n    batch_size: 8\n    seed: 1\n"
    )
    return file


def test_plan_takes_the_arguments_of_fit() -> None:
    """Names, kinds, types and defaults: the two signatures are written twice, since plan imports no Lightning."""
    assert inspect.signature(ModelSettings).parameters == inspect.signature(BiShareModule).parameters


def test_classification_shares_arguments_with_language_models() -> None:
    ours = dict(inspect.signature(ClassificationModule).parameters)
    theirs = dict(inspect.signature(BiShareModule).parameters)
    assert list(ours)[2] == "task"
    del ours["task"], theirs["compile"], theirs["max_new_tokens"]
    assert ours == theirs


def test_parts_are_found_beside_their_file(config: Path) -> None:
    settings = read_settings(["--config", str(config)])

    assert isinstance(settings.model.adapter, BiShareConfig)
    assert settings.model.adapter.r_local == 3
    assert settings.trainer["devices"] == 2
    assert settings.data["init_args"]["batch_size"] == 8


def test_second_file_is_laid_over_the_first(config: Path) -> None:
    second = config.with_name("second.yaml")
    second.write_text("trainer:\n  precision: bf16-mixed\n  callbacks+:\n    - class_path: callbacks.Throughput\n")

    settings = read_settings(["--config", str(config), "--config", str(second)])

    assert settings.trainer["devices"] == 2
    assert settings.trainer["precision"] == "bf16-mixed"
    assert [c["class_path"] for c in settings.trainer["callbacks"]] == ["callbacks.RunSummary", "callbacks.Throughput"]


def test_options_win_over_files(config: Path) -> None:
    options = ["--trainer.devices=8", "--data.batch_size", "16", "--data.init_args.seed", "5", "--model.base", "a/b"]

    settings = read_settings(["--config", str(config), *options])

    assert settings.trainer["devices"] == 8
    assert settings.data["init_args"] == {"batch_size": 16, "seed": 5}
    assert settings.model.base == "a/b"


def test_another_data_class_starts_from_its_defaults(config: Path) -> None:
    settings = read_settings(["--config", str(config), "--data", "bishare.data.InstructionData"])

    assert settings.data == {"class_path": "bishare.data.InstructionData"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.adapter.r_locl", "3"], "r_locl is not known; did you mean r_local"),
        (["--model.adapter.r_local=-1"], "r_local is -1"),
        (["--model.base_dtype", "bf16"], "base_dtype"),
        (["--trainer"], "--trainer needs a value"),
        (["--trainer", "nowhere.yaml"], "nowhere.yaml cannot be read: No such file"),
    ],
)
def test_a_mistake_is_one_line(config: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings(["--config", str(config), *options])
