"""The learning rate of each parameter group is logged once for each optimizer step, also under accumulation."""

from collections.abc import Callable

import pytest
from lightning.pytorch import LightningDataModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bishare.training.module import BiShareModule
from callbacks import LearningRate


def test_rates_are_logged_once_per_step(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    events: Callable[[], EventAccumulator],
) -> None:
    tiny_trainer(LearningRate()).fit(tiny_module(), tiny_data)
    tags = [tag for tag in events().Tags()["scalars"] if tag.startswith("learning_rate/")]
    assert sorted(tags) == [f"learning_rate/{level}.{role}" for level in ("inter", "intra", "local") for role in "AB"]
    for tag in tags:
        logged = [(event.step, event.value) for event in events().Scalars(tag)]
        # One step of warm-up from a hundredth, then a fall to zero behind the sixth step.
        assert logged == [(step, pytest.approx(rate)) for step, rate in enumerate([1e-4, 1e-2, 8e-3, 6e-3, 4e-3, 2e-3])]
