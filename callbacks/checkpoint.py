"""Writes the adapter folder of a run with every Lightning checkpoint."""

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

    The folder always holds a whole adapter: a new folder replaces the old by renaming, just before Lightning writes
    the checkpoint of the same step. A crash between the two leaves the adapter newer than the checkpoint by a single
    save, never older or broken.
    """

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save without a barrier: ``Trainer.save_checkpoint`` has a barrier after the checkpoint itself."""
        self._save(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save here: at ``on_fit_end`` the strategy has already moved the model off the devices."""
        self._save(trainer, pl_module)
        trainer.strategy.barrier("AdapterCheckpoint")

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        adapter = adapter_of(pl_module)
        # On every rank: gathering partitioned parameters is a collective.
        values = _whole(adapter.live_parameters())
        head = _whole(head_of(pl_module))
        if trainer.is_global_zero:
            save_adapter(adapter, adapter_folder(trainer), base=base_of(pl_module), values=values, head=head)


def _whole(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Whole values of parameters, by name, in fp32."""
    return dict(zip(parameters, full_fp32(list(parameters.values())), strict=True))
