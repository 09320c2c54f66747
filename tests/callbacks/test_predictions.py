"""Answers land in one file, in order, and never on another file."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from bishare.training.module import BiShareModule
from callbacks import PredictionWriter
from callbacks.predictions import join, part_path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_are_written_in_order(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    tiny_trainer(PredictionWriter()).predict(tiny_module(), tiny_data, return_predictions=False)
    path = tmp_path / "predictions.jsonl"
    assert lines(path) == [{"prompt": f"ä{i}", "answer": f"Ä{i}", "reference": ""} for i in range(5)]
    assert "ä0" in path.read_text(encoding="utf-8")  # not escaped
    assert [p.name for p in tmp_path.glob("predictions*")] == ["predictions.jsonl"]


def test_existing_file_and_crashed_part_stay(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    (tmp_path / "predictions.jsonl").write_text("mine\n")
    (tmp_path / "predictions-1.jsonl.rank0").write_text("crashed\n")
    tiny_trainer(PredictionWriter()).predict(tiny_module(), tiny_data, return_predictions=False)
    assert (tmp_path / "predictions.jsonl").read_text() == "mine\n"
    assert (tmp_path / "predictions-1.jsonl.rank0").read_text() == "crashed\n"
    assert len(lines(tmp_path / "predictions-2.jsonl")) == 5


def test_parts_of_ranks_become_one_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    for rank, places in enumerate([[0, 2, 4], [1, 3, 0]]):  # five examples on two ranks: the sampler repeats the first
        rows = [json.dumps({"place": [0, place], "answer": f"a{place}"}) for place in places]
        part_path(path, rank).write_text("\n".join(rows) + "\n")
    join(path, num_parts=2)
    assert lines(path) == ["a0", "a1", "a2", "a3", "a4"]
    assert list(tmp_path.iterdir()) == [path]


def test_ranks_without_sampler_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    for rank in range(2):
        writer = PredictionWriter()
        writer._part = part_path(path, rank).open("x")
        trainer: Any = SimpleNamespace(world_size=2, global_rank=rank)
        for batch in ([rank, rank + 2], [rank + 4]):
            writer.write_on_batch_end(trainer, None, [{"i": i} for i in batch], None, None, 0, 0)  # type: ignore[arg-type]
        writer._part.close()
    join(path, num_parts=2)
    assert lines(path) == [{"i": i} for i in range(6)]
