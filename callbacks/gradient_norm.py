"""Logs how large the gradient of every optimizer step is."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.optim import Optimizer
from typing_extensions import override

from bishare.training.optimization import gradient_norm

TAG = "train/grad_norm"


class GradientNorm(Callback):
    """Logs the L2 norm over all gradients of an optimizer step, before clipping.

    The gradient is the one of ``train/loss``: the sum over the step's micro-batches and the mean over the processes.
    Under DeepSpeed the norm is DeepSpeed's own, since each process holds a piece of the gradients.

    Logs:
        ``train/grad_norm``: the norm, at the step's ``train/loss``.
    """

    def __init__(self) -> None:
        self._last_step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # DeepSpeed comes here with every micro-batch, and measures later, inside its step.
        if not isinstance(trainer.strategy, DeepSpeedStrategy):
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            pl_module.log(TAG, gradient_norm(optimizer, scaler))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(trainer.strategy, DeepSpeedStrategy) and trainer.global_step > self._last_step:
            self._last_step = trainer.global_step
            pl_module.log(TAG, trainer.strategy.deepspeed_engine.get_global_grad_norm())
