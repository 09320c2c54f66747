"""Ranks by level, kind and layer, at the right steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bishare.adapters.lora import LoRAConfig
from bishare.analysis.levels import measure_levels
from bishare.errors import UserError
from bishare.training.module import BiShareModule
from callbacks import RankMonitor


def test_measures_are_logged_every_n_steps(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
    events: Callable[[], EventAccumulator],
) -> None:
    module = tiny_module()
    tiny_trainer(RankMonitor(every_n_steps=4)).fit(module, tiny_data)
    assert scalars("numerical_rank/local/q") == {4: 1.0, 6: 1.0}
    assert scalars("numerical_rank/intra/q") == {4: 2.0, 6: 2.0}
    assert scalars("numerical_rank/inter/q") == {4: 3.0, 6: 3.0}
    assert scalars("numerical_rank/whole/down") == {4: 6.0, 6: 6.0}
    assert [image.step for image in events().Images("effective_rank")] == [4, 6]

    adapter = module.adapter
    norms = []
    for slot in adapter.slots:
        if slot.kind == "up":
            A, B = adapter.factors(slot)
            norms.append(torch.linalg.matrix_norm(B @ A).item())
    assert scalars("update_norm/whole/up")[6] == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_one_level_has_no_second_row(tiny_module: Callable[..., BiShareModule], tiny_data: LightningDataModule) -> None:
    module = tiny_module(LoRAConfig(r=2))
    module.configure_model()
    levels = measure_levels(module.adapter)
    assert list(levels) == ["local"]
    assert {rank.numerical for rank in levels["local"].values()} == {0}  # B is zero before training


def test_last_measured_step_survives_a_resume(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
    tmp_path: Path,
) -> None:
    every_step = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = tiny_trainer(RankMonitor(every_n_steps=4), every_step, max_epochs=2, enable_checkpointing=True)
    trainer.fit(tiny_module(), tiny_data)
    assert list(scalars("effective_rank/whole/q")) == [4, 8, 12]
    monitor = RankMonitor(every_n_steps=4)
    checkpoint = tmp_path / "step=6.ckpt"
    tiny_trainer(monitor, max_epochs=2, logger=False).fit(
        tiny_module(), tiny_data, ckpt_path=checkpoint, weights_only=False
    )
    assert torch.load(checkpoint, weights_only=False)["callbacks"]["RankMonitor"] == {"last_step": 4}
    assert monitor.state_dict() == {"last_step": 12}


def test_every_n_steps_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="every_n_steps is 0"):
        RankMonitor(every_n_steps=0)
