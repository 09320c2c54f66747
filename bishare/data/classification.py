"""Sentences and pairs of sentences to classify: the tasks of GLUE from the hub or from files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from bishare.data.encoding import NO_LABEL, Example
from bishare.data.examples import Examples
from bishare.data.glue import TASKS, Labelled, TaskName, parse_labelled
from bishare.data.hub import FILES
from bishare.data.row_files import read_objects
from bishare.data.step_data import StepData
from bishare.errors import UserError

GLUE = "nyu-mll/glue"


class LabelledExamples(Examples):
    """Padded rows, the longest first, each with a label of its own.

    A batch holds ``input_ids``, ``attention_mask`` and, if the tokenizer makes them, ``token_type_ids`` ``[b, n]``.
    Its ``labels`` are ``[b]`` (int64 classes or fp32 scores). In training, a batch also holds ``num_step_labels``.

    Args:
        tokens: The tokenizer's result for all rows.
        rows: The rows.
        pad_token_id: Token that fills short rows; padding is masked.
        is_score: Whether the labels are scores.
    """

    def __init__(self, tokens: Any, rows: Sequence[Labelled], *, pad_token_id: int, is_score: bool) -> None:
        # The labels of tokens stay empty: a row has one label, in ``targets``.
        examples = [Example(ids, [NO_LABEL] * len(ids), cut=False) for ids in tokens["input_ids"]]
        super().__init__(examples, pad_token_id=pad_token_id)
        self.num_labels = np.ones(len(rows), dtype=np.int64)
        self.targets = torch.tensor([row.label for row in rows], dtype=torch.float32 if is_score else torch.int64)
        self.token_types: npt.NDArray[np.int8] | None = None
        if "token_type_ids" in tokens:
            self.token_types = np.concatenate([np.array(row, dtype=np.int8) for row in tokens["token_type_ids"]])

    def _padded(self, rows: Sequence[int]) -> dict[str, Any]:
        batch = super()._padded(rows)
        batch["labels"] = self.targets[list(rows)]
        if self.token_types is not None:
            token_types = torch.zeros_like(batch["input_ids"])
            for place, index in enumerate(rows):
                token_types[place, : self.lengths[index]] = torch.from_numpy(self.token_types[self._span(index)])
            batch["token_type_ids"] = token_types
        return batch


@dataclass(kw_only=True, eq=False)
class ClassificationData(StepData):
    """A task of GLUE with the task's own validation split.

    Files of your own have the fields ``sentence1``, ``sentence2`` (for tasks of pairs) and ``label``.
    """

    task: TaskName = field(kw_only=False)
    """The task; decides the classes and the metrics."""
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
                next(iter(self._objects(split)), None)  # the first row downloads the whole split

    def load_validation(self) -> Examples:
        """The task's validation split."""
        self._validation_rows = self._read(TASKS[self.task].validation)
        return self._encode(self._validation_rows)

    def load_training(self) -> Examples:
        """The task's training split, or ``max_examples`` rows of it."""
        rows = self._read("train")
        if self.max_examples is not None and self.max_examples < len(rows):
            drawn = np.random.default_rng(self.seed).permutation(len(rows))[: self.max_examples]
            rows = list(map(rows.__getitem__, drawn))
        return self._encode(rows)

    def report(self, train: Examples) -> None:
        """Log the number of examples, their lengths and the steps of an epoch."""
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
        decimals = 2 if self._is_score else 0
        prompts, references = [], []
        for row in rows:
            prompts.append(" [SEP] ".join(row.sentences))
            references.append(f"{row.label:.{decimals}f}")
        return {**tokens, "prompt": prompts, "reference": references}

    @property
    def _is_score(self) -> bool:
        """Whether the task is a regression."""
        return TASKS[self.task].num_classes == 1

    def _objects(self, split: str) -> Iterator[tuple[int, Any, str]]:
        """Rows with their numbers and their source."""
        source = self._source(split)
        for number, fields in read_objects(source, split=split, subset=self.task):
            yield number, fields, source

    def _source(self, split: str) -> str:
        """The file of a split if ``path`` is a folder, else the hub name."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            # MNLI's validation split is named validation_matched on the hub; a folder has mnli_validation.
            stem = f"{self.task}_{split.partition('_')[0]}"
            for ending in FILES:
                if (folder / f"{stem}{ending}").is_file():
                    return str(folder / f"{stem}{ending}")
            raise UserError(f"{folder} has no {stem}.jsonl (nor .json or .parquet).")
        if folder.exists() or folder.suffix in FILES:
            raise UserError(
                f"path is {self.path}; give the folder that holds {self.task}_train.jsonl and "
                f"{self.task}_validation.jsonl, or a hub name."
            )
        return self.path

    def _read(self, split: str) -> list[Labelled]:
        rows = []
        for number, fields, source in self._objects(split):
            rows.append(parse_labelled(fields, self.task, f"{source}, row {number}"))
        if not rows:
            raise UserError(f"{self.path} holds no rows for {self.task} ({split}).")
        return rows

    def _tokens(self, rows: Sequence[Labelled], **options: Any) -> Any:
        # The tokenizer takes the first sentences of all rows, then the second sentences.
        sentences = map(list, zip(*(row.sentences for row in rows), strict=True))
        return self.tokenizer(*sentences, truncation=True, max_length=self.max_length, **options)

    def _encode(self, rows: list[Labelled]) -> Examples:
        tokens = self._tokens(rows)
        # Slow tokenizers give no encodings; they do not tell which rows were cut.
        self.num_cut += sum(bool(row.overflowing) for row in tokens.encodings or [])
        return LabelledExamples(tokens, rows, pad_token_id=self.tokenizer.pad_token_id, is_score=self._is_score)
