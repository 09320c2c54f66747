"""Keeps the adapter folder as new as the newest Lightning checkpoint."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from bishare.adapters.checkpoint import save_adapter
from bishare.distributed.partitions import full_fp32

from .run import adapter_folder, adapter_of, base_of, head_of


class AdapterCheckpoint(Callback):
    """Writes the adapter to ``<run folder>/adapter`` with every checkpoint and at the end of training.

    The folder always holds one whole adapter: it is replaced by renaming, just before the checkpoint of the same
    step is written. After a crash between the two the adapter is one checkpoint newer, never older or broken.
    """

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """No barrier here: ``Trainer.save_checkpoint`` has one after the checkpoint itself."""
        self._save(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not ``on_fit_end``: by then the strategy has taken the model off its devices."""
        self._save(trainer, pl_module)
        trainer.strategy.barrier("AdapterCheckpoint")

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        adapter = adapter_of(pl_module)
        values = _whole(adapter.live_parameters())
        head = _whole(head_of(pl_module))
        if trainer.is_global_zero:
            save_adapter(adapter, adapter_folder(trainer), base=base_of(pl_module), values=values, head=head)


def _whole(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The parameters' values; called on every rank, because each may hold a piece."""
    return dict(zip(parameters, full_fp32(list(parameters.values())), strict=True))
