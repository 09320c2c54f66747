"""Logs the learning rate on Lightning's own monitor."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from typing_extensions import override


class LearningRate(LearningRateMonitor):
    """Logs the learning rate of every parameter group, once for each optimizer step.

    Lightning's monitor logs at the start of every micro-batch, so that accumulation repeats each value.

    Logs:
        ``learning_rate/<group>``: rate of the optimizer step, at the step's ``train/loss``.

    Raises:
        MisconfigurationException: The Trainer has no logger.
    """

    def __init__(self) -> None:
        super().__init__(logging_interval="step")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
