"""The clock of end_to_end.py as a callback of ``python -m bishare fit``, found by its class path."""

from pathlib import Path
from typing import Any

from end_to_end import Clock
from lightning.pytorch import Callback, Trainer
from typing_extensions import override


class StepClock(Callback):
    """Marks the end of every optimizer step, and writes the report when training ends.

    Args:
        path: File for the report.
    """

    def __init__(self, path: str) -> None:
        self.path, self.clock = Path(path), Clock()

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.clock.marks):  # not at the other micro-batches of a step
            self.clock.mark()

    @override
    def on_train_end(self, *_: Any) -> None:
        self.path.write_text(self.clock.report())
