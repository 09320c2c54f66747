"""The adapter folder follows the checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bishare.adapters.checkpoint import read_adapter
from bishare.training.module import BiShareModule
from callbacks import AdapterCheckpoint


class Crash(Callback):
    """Stops the run after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("crash")


def assert_same(adapter: Any, folder: Path, checkpoint: dict[str, torch.Tensor]) -> None:
    stored = read_adapter(folder).tensors
    assert set(stored) == set(adapter.live_parameters())
    for name, tensor in stored.items():
        assert torch.equal(tensor, checkpoint[f"model.bishare.{name}"])


def test_end_of_training_leaves_the_adapter(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    module = tiny_module()
    tiny_trainer(AdapterCheckpoint()).fit(module, tiny_data)
    assert_same(module.adapter, tmp_path / "adapter", module.state_dict())
    assert read_adapter(tmp_path / "adapter").base == "tiny"


def test_crash_leaves_the_last_checkpoints_adapter(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    module = tiny_module()
    every_two = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)
    trainer = tiny_trainer(AdapterCheckpoint(), every_two, Crash(step=3), enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit(module, tiny_data)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    saved = torch.load(checkpoint, weights_only=False)
    assert saved["global_step"] == 2
    assert_same(module.adapter, tmp_path / "adapter", saved["state_dict"])


def test_only_rank_zero_writes(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = tiny_trainer(AdapterCheckpoint())
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    trainer.fit(tiny_module(), tiny_data)
    assert not (tmp_path / "adapter").exists()
