"""Sentences and pairs of sentences to classify: the tasks of GLUE from the hub or from files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from bishare.data.examples import Examples
from bishare.data.glue import TASKS, Labelled, TaskName, parse_labelled
from bishare.data.prompts import NO_LABEL, Example
from bishare.data.row_files import FILES, read_objects
from bishare.data.step_data import StepData
from bishare.errors import UserError

GLUE = "nyu-mll/glue"


class LabelledExamples(Examples):
    """Padded rows, the longest first, with one label each.

    A batch holds ``input_ids``, ``attention_mask`` and, if the tokenizer makes them, ``token_type_ids`` ``[b, n]``,
    ``labels`` ``[b]`` (int64 classes or fp32 scores) and, while training, ``num_step_labels``.

    Args:
        tokens: What the tokenizer returns for all rows.
        rows: The rows.
        pad_token_id: Token that fills short rows; it is masked.
        is_score: Whether the labels are scores.
    """

    def __init__(self, tokens: Any, rows: Sequence[Labelled], *, pad_token_id: int, is_score: bool) -> None:
        ids = tokens["input_ids"]
        super().__init__([Example(row, [NO_LABEL] * len(row), False) for row in ids], pad_token_id=pad_token_id)
        self.num_labels = np.ones(len(rows), dtype=np.int64)
        self.targets = torch.tensor([row.label for row in rows], dtype=torch.float32 if is_score else torch.int64)
        kinds = tokens.get("token_type_ids")
        self.kinds = None if kinds is None else np.concatenate([np.array(row, dtype=np.int8) for row in kinds])

    def _padded(self, rows: Sequence[int]) -> dict[str, Any]:
        batch = super()._padded(rows)
        batch["labels"] = self.targets[list(rows)]
        if self.kinds is not None:
            kinds = torch.zeros_like(batch["input_ids"])
            for place, index in enumerate(rows):
                span = slice(self.offsets[index], self.offsets[index + 1])
                kinds[place, : self.lengths[index]] = torch.from_numpy(self.kinds[span])
            batch["token_type_ids"] = kinds
        return batch


@dataclass(kw_only=True, eq=False)
class ClassificationData(StepData):
    """One task of GLUE; validation is on the task's own validation split.

    Files of your own have the fields ``sentence1``, ``sentence2`` (for tasks of pairs) and ``label``.
    """

    task: TaskName = field(kw_only=False)
    """The task, which decides the classes and the metrics."""
    path: str = GLUE
    """A hub name, or a folder with ``TASK_train`` and ``TASK_validation`` as .jsonl, .json or .parquet files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise UserError(f"task is {self.task}; GLUE has {', '.join(TASKS)}.")
        self._validation_rows: list[Labelled] = []

    def prepare_data(self) -> None:
        """Fill the download caches, on one process of each machine."""
        super().prepare_data()
        if not Path(self.path).expanduser().is_dir():
            for split in ("train", TASKS[self.task].validation):
                next(iter(self._objects(split)), None)

    def load_validation(self) -> Examples:
        """The task's validation split."""
        self._validation_rows = self._read(TASKS[self.task].validation)
        return self._encode(self._validation_rows)

    def load_training(self) -> Examples:
        """The task's training split, or ``max_examples`` rows of it."""
        rows = self._read("train")
        if self.max_examples is not None and self.max_examples < len(rows):
            drawn = np.random.default_rng(self.seed).permutation(len(rows))[: self.max_examples]
            rows = [rows[index] for index in drawn]
        return self._encode(rows)

    def report(self, train: Examples) -> None:
        """Say what there is to train on."""
        assert self._validation is not None
        rank_zero_info(
            f"Data: {self.task} has {len(train):,} training and {len(self._validation):,} validation examples "
            f"({self.num_cut:,} cut to {self.max_length} tokens), {train.lengths.mean():.0f} tokens on average; "
            f"{self.steps_per_epoch:,} steps per epoch of {self.batch_size}; {self.accumulation} micro-batches "
            f"per step and device, devices: {self._world_size}."
        )

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The validation examples in their order, with their sentences and labels as text."""
        return DataLoader(
            self._validation_rows,  # type: ignore[arg-type]  # any sequence is a map-style data set
            batch_size=max(1, self.tokens_per_micro_batch // self.max_length),
            collate_fn=self._prompt_batch,
            generator=torch.Generator(),
        )

    def _prompt_batch(self, rows: Sequence[Labelled]) -> dict[str, Any]:
        tokens = self._tokens(rows, return_tensors="pt", padding=True)
        is_score = TASKS[self.task].num_classes == 1
        return {
            **tokens,
            "prompt": [" [SEP] ".join(row.sentences) for row in rows],
            "reference": [f"{row.label:.2f}" if is_score else f"{row.label:.0f}" for row in rows],
        }

    def _objects(self, split: str) -> Iterator[tuple[int, Any, str]]:
        """Rows with their numbers and their source."""
        folder = Path(self.path).expanduser()
        source = self.path
        if folder.is_dir():
            found = [folder / f"{self.task}_{split.partition('_')[0]}{ending}" for ending in FILES]
            file = next((file for file in found if file.is_file()), None)
            if file is None:
                raise UserError(f"{folder} has no {found[-2].name} (nor {found[0].suffix} or {found[-1].suffix}).")
            source = str(file)
        elif folder.exists() or folder.suffix in FILES:
            raise UserError(
                f"path is {self.path}; give the folder that holds {self.task}_train.jsonl and "
                f"{self.task}_validation.jsonl, or a hub name."
            )
        for number, fields in read_objects(source, split=split, subset=self.task):
            yield number, fields, source

    def _read(self, split: str) -> list[Labelled]:
        rows = [
            parse_labelled(fields, self.task, f"{source}, row {number}")
            for number, fields, source in self._objects(split)
        ]
        if not rows:
            raise UserError(f"{self.path} holds no rows for {self.task} ({split}).")
        return rows

    def _tokens(self, rows: Sequence[Labelled], **options: Any) -> Any:
        sentences = [list(texts) for texts in zip(*(row.sentences for row in rows), strict=True)]
        return self.tokenizer(*sentences, truncation=True, max_length=self.max_length, **options)

    def _encode(self, rows: list[Labelled]) -> Examples:
        tokens = self._tokens(rows)
        self.num_cut += sum(bool(row.overflowing) for row in tokens.encodings or [])
        return LabelledExamples(
            tokens, rows, pad_token_id=self.tokenizer.pad_token_id, is_score=TASKS[self.task].num_classes == 1
        )
