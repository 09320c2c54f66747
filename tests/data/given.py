"""Data from a list of rows, and a training that writes down what it meets."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from bishare.data.packing import unpack
from bishare.data.prompt_data import PromptData
from bishare.data.rows import Row


@dataclass(kw_only=True, eq=False)
class Given(PromptData):
    """Rows from a list."""

    rows: list[Row] = field(kw_only=False)

    def read(self) -> list[Row]:
        return self.rows


class Watcher(LightningModule):
    """Writes down which texts this rank met, in training and validation."""

    def __init__(self, tokenizer, folder):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.decode, self.folder = tokenizer.decode, folder
        self.seen = {"train": [], "val": [], "steps": []}

    def note(self, where, batch):
        pairs = zip(*(unpack(batch)[name] for name in ("input_ids", "attention_mask")), strict=True)
        self.seen[where] += [self.decode(ids[mask.bool()]) for ids, mask in pairs]

    def training_step(self, batch, batch_idx):
        self.note("train", batch)
        self.seen["steps"].append([self.trainer.global_step, batch["num_step_labels"]])
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def on_fit_end(self):
        self.seen["num_steps"] = self.trainer.global_step
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.seen))


def train_and_watch(folder: Path, tokenizer: Any, data: Any, **options: Any) -> list[dict[str, Any]]:
    """Train for an epoch.

    Returns:
        The texts and steps that each rank met.
    """
    folder.mkdir(exist_ok=True)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(Watcher(tokenizer, folder), datamodule=data)
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]
