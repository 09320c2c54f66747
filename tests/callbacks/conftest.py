"""A real training in miniature: BiShareModule on a tiny Llama and random tokens, one batch in two micro-batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.models.attach import attach
from bishare.training.module import BiShareModule

NUM_TRAIN, NUM_VAL, LENGTH, PADDED = 24, 6, 10, 3


class TinyModule(BiShareModule):
    """The real module on a model that needs no files; its answers draw random numbers, to be caught at it."""

    def __init__(self, model: PreTrainedModel, adapter: AdapterConfig) -> None:
        super().__init__("tiny", adapter, learning_rate=1e-2, warmup_steps=1)
        self._tiny = [model]  # in a list, so that it is not registered twice

    def configure_model(self) -> None:
        if "model" not in self._modules:
            self.model = self._tiny[0].train()
            attach(self.model, self.adapter_config)

    def generate(self, prompts: list[str], max_new_tokens: int = 64) -> list[str]:
        assert not self.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        return [f"answer to [{prompt}]" for prompt in prompts]

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, str]]:
        return [{"prompt": p, "answer": p.upper(), "reference": ""} for p in batch["prompt"]]


def collate(rows: list[int]) -> dict[str, Any]:
    tokens = torch.stack([torch.randint(3, 64, (LENGTH,), generator=torch.Generator().manual_seed(i)) for i in rows])
    mask = torch.ones_like(tokens)
    mask[:, -PADDED:] = 0
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "labels": tokens.where(mask.bool(), -100),
        "prompt": [f"ä{i}" for i in rows],
    }


class TinyData(LightningDataModule):
    batch_size = 4
    steps_per_epoch = NUM_TRAIN // 4

    def setup(self, stage: str) -> None:
        if stage == "fit":
            assert self.trainer is not None
            self.trainer.accumulate_grad_batches = 2

    def _loader(self, num: int) -> DataLoader[Any]:
        return DataLoader(list(range(num)), batch_size=2, collate_fn=collate)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(NUM_TRAIN)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(NUM_VAL)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(5)

    def render_prompt(self, instruction: str, input: str = "") -> str:
        return f"Q: {instruction} A:"


@pytest.fixture
def tiny_module(tiny_model: Callable[..., PreTrainedModel]) -> Callable[..., BiShareModule]:
    """A function that builds the module with Bi-Share (1, 2, 3), the same weights every time."""

    def build(adapter: AdapterConfig | None = None) -> BiShareModule:
        torch.manual_seed(0)
        config = adapter or BiShareConfig(transform="slice", r_local=1, r_intra=2, r_inter=3)
        return TinyModule(tiny_model("llama"), config)

    return build


@pytest.fixture
def tiny_data() -> LightningDataModule:
    return TinyData()


@pytest.fixture
def tiny_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A function from callbacks and options to a CPU trainer that runs in, and logs to, ``tmp_path``."""

    def build(*callbacks: Callback, **options: Any) -> Trainer:
        settings: dict[str, Any] = {
            "max_epochs": 1,
            "num_sanity_val_steps": -1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": TensorBoardLogger(tmp_path, name="", version=""),
        }
        return Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), **(settings | options))

    return build


@pytest.fixture
def events(tmp_path: Path) -> Callable[[], EventAccumulator]:
    """A function that reads the event files of ``tmp_path`` with TensorBoard's own reader."""

    def read() -> EventAccumulator:
        accumulator = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
        return accumulator.Reload()

    return read


@pytest.fixture
def scalars(events: Callable[[], EventAccumulator]) -> Callable[[str], dict[int, float]]:
    """A function from a tag to its values by step."""

    def read(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events().Scalars(tag)}

    return read
