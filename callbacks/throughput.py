"""Tokens and examples per second, padding and memory, by Lightning's own throughput monitor."""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.trainer.states import RunningStage
from typing_extensions import override

from bishare.errors import UserError

GIB = 2**30


class Throughput(ThroughputMonitor):
    """Measures the speed of training, without the time of validation.

    Lightning's monitor measures time and averages over a window. This subclass counts tokens without padding, reports
    from the second micro-batch on instead of after a full window, and shows tokens per second in the progress bar
    (``tok/s``). Rank zero measures and multiplies by the number of devices.

    Args:
        window: Optimizer steps over which the rates are averaged.

    Logs:
        ``throughput/tokens_per_sec``: tokens of the examples, on all devices. Padding is not counted; a prompt shared
            by examples of a pack counts for each of the examples.
        ``throughput/examples_per_sec``: examples, on all devices.
        ``throughput/padding_share``: padding over all positions, in the last optimizer step.
        ``memory/peak_gib``: peak memory so far in GiB: resident memory of the process on the CPU, memory allocated by
            PyTorch on a GPU.

    Raises:
        UserError: The window is below 1.
    """

    def __init__(self, window: int = 10) -> None:
        if window < 1:
            raise UserError(f"Throughput: window is {window}; rates need at least 1 optimizer step.")
        super().__init__(batch_size_fn=num_examples, length_fn=num_tokens)
        self.window = window
        # Of the current optimizer step.
        self._tokens = 0
        self._positions = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # A rate is a difference of two entries, and an entry is a micro-batch.
        self.kwargs["window_size"] = self.window * trainer.accumulate_grad_batches + 1
        # Set before Lightning looks, because Lightning warns when the module has no flops_per_batch.
        self._module_has_flops = hasattr(pl_module, "flops_per_batch")
        super().setup(trainer, pl_module, stage)

    @override
    def _update(self, trainer: Trainer, pl_module: LightningModule, batch: Any, iter_num: int) -> None:
        super()._update(trainer, pl_module, batch, iter_num)
        self._tokens += num_tokens(batch)
        self._positions += batch["input_ids"].numel() + _num_shared(batch)

    @override
    def _compute(self, trainer: Trainer, iter_num: int | None = None) -> None:
        """Log the rates; Lightning calls this method after every optimizer step, on rank zero."""
        if trainer.state.stage != RunningStage.TRAINING:
            return
        padding = 1 - self._tokens / self._positions
        self._tokens = self._positions = 0
        window = self._throughputs[RunningStage.TRAINING]
        if len(window._time) < 2:  # no difference yet
            return
        rate = trainer.world_size / (window._time[-1] - window._time[0])
        tokens_per_sec = rate * (window._lengths[-1] - window._lengths[0])
        metrics = {
            "throughput/tokens_per_sec": tokens_per_sec,
            "throughput/examples_per_sec": rate * (window._samples[-1] - window._samples[0]),
            "throughput/padding_share": padding,
            "memory/peak_gib": peak_memory(trainer.strategy.root_device) / GIB,
        }
        trainer.lightning_module.log_dict(metrics, rank_zero_only=True)
        trainer.lightning_module.log("tok/s", tokens_per_sec, prog_bar=True, logger=False, rank_zero_only=True)


def num_examples(batch: Mapping[str, torch.Tensor]) -> int:
    """Examples of a batch; a pack is a single row of several examples."""
    return len(batch["lengths" if "lengths" in batch else "input_ids"])


def num_tokens(batch: Mapping[str, torch.Tensor]) -> int:
    """Tokens of the examples of a batch; without an attention mask, padding is counted too."""
    mask = batch.get("attention_mask")
    return _num_shared(batch) + (batch["input_ids"].numel() if mask is None else int(mask.sum()))


def _num_shared(batch: Mapping[str, torch.Tensor]) -> int:
    """Tokens left out of a pack because the example before begins with the same tokens; 0 for padded rows."""
    return int(batch["shared"].sum()) if "shared" in batch else 0


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: allocated on a GPU, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
