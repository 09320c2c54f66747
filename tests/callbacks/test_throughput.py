"""Speed counts what is not padding, from the first optimizer step on."""

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bishare.errors import UserError
from bishare.training.module import BiShareModule
from callbacks import Throughput
from callbacks.throughput import num_tokens, peak_memory


def test_rates_and_memory_are_logged_every_step(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    scalars: Callable[[str], dict[int, float]],
    recwarn: pytest.WarningsRecorder,
) -> None:
    monitor = Throughput(window=2)
    tiny_trainer(monitor).fit(tiny_module(), tiny_data)
    tokens, examples = scalars("throughput/tokens_per_sec"), scalars("throughput/examples_per_sec")
    assert len(tokens) == 6
    assert all(rate > 0 for rate in tokens.values())
    for step, rate in tokens.items():
        assert rate == pytest.approx(7 * examples[step])  # 10 positions a row, 3 of them padding
    assert list(scalars("throughput/padding_share").values()) == pytest.approx([0.3] * 6)
    assert all(value > 0.1 for value in scalars("memory/peak_gib").values())
    assert not [w for w in recwarn if "flops" in str(w.message)]


def test_window_is_counted_in_optimizer_steps(
    tiny_module: Callable[..., BiShareModule], tiny_data: LightningDataModule, tiny_trainer: Callable[..., Trainer]
) -> None:
    monitor = Throughput(window=2)
    tiny_trainer(monitor).fit(tiny_module(), tiny_data)
    assert len(monitor._throughputs["train"]._time) == 2 * 2 + 1  # type: ignore[index]  # two micro-batches a step


def test_tokens_per_second_stand_in_the_bar_only(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    events: Callable[[], EventAccumulator],
) -> None:
    trainer = tiny_trainer(Throughput())
    trainer.fit(tiny_module(), tiny_data)
    assert trainer.progress_bar_metrics["tok/s"] > 0
    assert "tok/s" not in events().Tags()["scalars"]


def test_batch_without_mask_has_no_padding() -> None:
    batch = {"input_ids": torch.zeros(2, 5)}
    assert num_tokens(batch) == 10
    assert num_tokens(batch | {"attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])}) == 7


def test_peak_memory_grows_with_held_tensors() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 2**20)  # fp32: as much again as was ever resident
    assert peak_memory(torch.device("cpu")) >= before + held.nbytes / 4


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(UserError, match="window is 0"):
        Throughput(window=0)
