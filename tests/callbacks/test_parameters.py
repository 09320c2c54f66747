"""The table appears at the start, a line after a merge, and the table again at the end."""

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from bishare.adapters.lora import LoRAConfig
from bishare.training.module import BiShareModule
from callbacks import ParameterCount


class Merge(Callback):
    """Lets one B of LoRA die after the second optimizer step, as a merge does."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            adapter = pl_module.adapter
            live = {n: p for n, p in adapter.named_parameters() if p is not adapter.local.B["0-down"]}
            adapter.live_parameters = lambda: live


def test_counts_are_shown_at_the_start_only(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = tiny_module(LoRAConfig(r=4))
    tiny_trainer(ParameterCount()).fit(module, tiny_data)
    num = module.adapter.num_parameters()
    printed = capsys.readouterr().out
    assert printed.count("Trainable parameters") == 1
    assert f"{num:,}" in printed
    assert "50.0%" in printed
    assert "dead" not in printed
    assert scalars("params/live") == {0: num}
    assert scalars("params/dead") == {0: 0}
    assert scalars("params/fraction_of_lora") == {0: 0.5}


def test_merge_shows_new_counts_once(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = tiny_module(LoRAConfig(r=4))
    tiny_trainer(Merge(), ParameterCount()).fit(module, tiny_data)
    num = module.adapter.num_parameters()
    printed = capsys.readouterr().out
    assert printed.count(f"Trainable parameters: {num:,} live, 128 dead, ") == 1
    assert printed.count("Trainable parameters  ") == 2  # the tables of the start and the end
    assert scalars("params/live") == {0: num + 4 * 32, 2: num}
    assert scalars("params/dead") == {0: 0, 2: 4 * 32}


def test_module_without_adapter_is_told_so(tiny_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="BoringModel has no adapter"):
        tiny_trainer(ParameterCount()).fit(BoringModel())
