"""What callbacks read from a running training."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from transformers import PreTrainedModel

from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.attach import attach
from bishare.training.module import BiShareModule
from callbacks.run import adapter_folder, adapter_of, base_of, head_of, model_of, run_folder, shown, tensorboards


class Own(LightningModule):
    """A module of a user's own."""

    def __init__(self, base: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()


def test_adapter_of_any_module(tiny_model: Callable[..., PreTrainedModel]) -> None:
    module = Own()
    with pytest.raises(UserError, match="Own has no adapter to look at; train a BiShareModule"):
        adapter_of(module)
    module.adapter = attach(tiny_model("llama"), LoRAConfig(r=2))
    assert adapter_of(module) is module.adapter


def test_model_is_attribute_or_module() -> None:
    module = Own()
    assert model_of(module) is module
    module.model = nn.Linear(2, 2)
    assert model_of(module) is module.model


def test_base_is_read_from_hyperparameters() -> None:
    assert base_of(BiShareModule("me/mine", LoRAConfig())) == "me/mine"
    assert base_of(Own("you/yours")) == "you/yours"
    assert base_of(Own()) == ""


def test_own_module_has_no_head() -> None:
    assert head_of(Own()) == {}


def test_folders_of_a_run(tmp_path: Path) -> None:
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    assert run_folder(trainer) == tmp_path
    assert adapter_folder(trainer) == tmp_path / "adapter"


def test_only_tensorboard_writers(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    trainer = SimpleNamespace(loggers=[CSVLogger(tmp_path), board])
    assert tensorboards(trainer) == [board.experiment]  # type: ignore[arg-type]


def test_path_is_relative_below_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs" / "1") == str(Path("runs", "1"))
    assert shown(tmp_path.parent) == str(tmp_path.parent.resolve())
