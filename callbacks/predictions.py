"""Writes the answers of ``predict`` as JSON lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from bishare.files import atomic_file

from .run import run_folder, shown


class PredictionWriter(BasePredictionWriter):
    """Writes the results of ``predict_step`` to ``<run folder>/predictions.jsonl``, an object per line.

    An existing file is never touched: the next file is ``predictions-1.jsonl``, and so on. During the run, every rank
    appends its answers to a part file (``predictions.jsonl.rank0``), so that a crash loses no answer. At the end, rank
    zero joins the parts in the order of the data set. A distributed run repeats examples to fill up the last round;
    the joined file has every example once. All ranks need the same file system.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._path: Path | None = None
        self._part: TextIO | None = None
        self._num_seen = 0

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._path = trainer.strategy.broadcast(free_path(run_folder(trainer) / "predictions.jsonl"))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._part = part_path(self._path, trainer.global_rank).open("x", encoding="utf-8")
        self._num_seen = 0

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Mapping[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert self._part is not None
        if not batch_indices:  # a loader without a sampler: rank r reads every world_size-th example, from r on
            numbers = range(self._num_seen, self._num_seen + len(prediction))
            batch_indices = [number * trainer.world_size + trainer.global_rank for number in numbers]
        for index, answer in zip(batch_indices, prediction, strict=True):
            line = json.dumps({"place": [dataloader_idx, index], "answer": answer}, ensure_ascii=False)
            self._part.write(line + "\n")
        self._part.flush()  # a crash after this batch loses nothing
        self._num_seen += len(prediction)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._part is not None
        assert self._path is not None
        self._part.close()
        trainer.strategy.barrier("PredictionWriter")
        if trainer.is_global_zero:
            join(self._path, trainer.world_size)
            # The progress bar's live display must end first, or it would be drawn over the line.
            if trainer.progress_bar_callback is not None:
                trainer.progress_bar_callback.teardown(trainer, pl_module, stage="predict")
            rich.get_console().print(f"Answers: {shown(self._path)}")


def free_path(path: Path) -> Path:
    """The first of ``name.jsonl``, ``name-1.jsonl``, ... with neither a file nor parts of a crashed run."""
    for number in count():
        candidate = path.with_stem(f"{path.stem}-{number}") if number else path
        if not candidate.exists() and not part_path(candidate, 0).exists():
            return candidate
    raise AssertionError("count() does not end")


def part_path(path: Path, rank: int) -> Path:
    """The file that a rank writes during the run."""
    return path.with_name(f"{path.name}.rank{rank}")


def join(path: Path, num_parts: int) -> None:
    """Join the parts in the order of the data set, each example once, and delete the parts when ``path`` is written."""
    answers: dict[tuple[int, int], Any] = {}
    for rank in range(num_parts):
        for row in rows(part_path(path, rank)):
            answers[tuple(row["place"])] = row["answer"]
    with atomic_file(path) as file:
        for place in sorted(answers):
            file.write(f"{json.dumps(answers[place], ensure_ascii=False)}\n".encode())
    for rank in range(num_parts):
        part_path(path, rank).unlink()


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, read line by line."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
