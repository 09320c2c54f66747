"""Exact resume: a stopped run continues as if the run had never stopped.

Lightning restores weights, optimizer, schedule, loops and callbacks, and the loaders restore their position. This file
adds the random state of every process, corrects Lightning's counts of epochs and batches, and writes checkpoint files
that survive a kill.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from torch import Tensor, distributed
from typing_extensions import override

from bishare.adapters.base import Adapter
from bishare.files import atomic_file

KEY = "resume"
"""Entry of checkpoints for the random state of every process, and the accumulation."""


class ExactResume(Callback):
    """Saves and restores the random state of every process, and prints the state at the start of a resumed run.

    ``BiShareModule`` adds this callback. The callback also makes checkpoint files atomic, and turns off DDP's broadcast
    of buffers in every forward pass: all processes compute the same buffers.
    """

    def __init__(self) -> None:
        self._saved: Sequence[dict[str, Any]] | None = None
        self._at_step_start: dict[str, Any] | None = None
        self._resumed = self._new_epoch = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # First in the list: random states are restored before a later callback draws random numbers.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set in Trainer.__init__
        callbacks.remove(self)
        callbacks.insert(0, self)
        strategy = trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()
        if isinstance(strategy, DDPStrategy):
            strategy._ddp_kwargs.setdefault("broadcast_buffers", False)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        inside_step = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches
        state = self._at_step_start if inside_step else random_state()
        states: list[Any] = [state]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            distributed.all_gather_object(states, state)
        checkpoint[KEY] = {"random": states, "accumulation": trainer.accumulate_grad_batches}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._saved, self._resumed = checkpoint[KEY]["random"], True
        loop = checkpoint["loops"]["fit_loop"]
        accumulation = checkpoint[KEY]["accumulation"]
        self._new_epoch = settle_progress(loop, global_step=checkpoint["global_step"], accumulation=accumulation)
        progress = loop["epoch_loop.batch_progress"]
        rescale_progress(progress, old=accumulation, new=trainer.accumulate_grad_batches)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._new_epoch:
            # With max_steps, Lightning assumes that every resumed run begins inside an epoch.
            trainer.fit_loop._restarting = trainer.fit_loop.epoch_loop._restarting = False
            trainer.fit_loop.epoch_loop.reset_restart_stage()
        if self._resumed:
            show_restored(trainer, pl_module, num_random=len(self._saved or ()))
        self._resumed = self._new_epoch = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not earlier: the setup of a run (loaders, the first answers) draws random numbers too.
        saved, self._saved = self._saved, None
        if saved is not None and trainer.global_rank < len(saved):
            set_random_state(saved[trainer.global_rank])
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._at_step_start = random_state()


def settle_progress(loop: dict[str, Any], *, global_step: int, accumulation: int) -> bool:
    """Rewrite Lightning's counts of epochs and batches for an exact resume.

    A checkpoint from inside an optimizer step resumes at the beginning of the step, since the file holds no gradients.
    Lightning miscounts when ``max_steps`` is set: after an end-of-epoch checkpoint Lightning skips an epoch, after a
    mid-epoch checkpoint the rest of the epoch.

    Args:
        loop: The saved state of the fit loop; changed in place.
        global_step: Optimizer steps done.
        accumulation: Micro-batches per optimizer step in the run that saved.

    Returns:
        Whether the run continues with a new epoch.
    """
    epoch, batch = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    begun = batch["current"]["ready"] % accumulation
    for loader in loop["state_dict"].get("combined_loader", []):
        if "batches" in loader and "accumulation" in loader:
            loader["batches"] -= loader["batches"] % loader["accumulation"]
    # At the end of an epoch: count the epoch as done and begin the next at batch 0.
    if batch["is_last_batch"] and not begun and batch["current"]["ready"]:
        for counts in (epoch["current"], epoch["total"], batch["total"]):
            counts.update(dict.fromkeys(counts, counts["ready"]))
        batch["current"].update(dict.fromkeys(batch["current"], 0))
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step
        return True
    # Lightning closes the epoch of a run that max_steps stops inside. Open the epoch again.
    closed = epoch["current"]["processed"] == epoch["current"]["ready"] and batch["current"]["ready"]
    if closed:
        for counts in (epoch["current"], epoch["total"]):
            counts["processed"] -= 1
            counts["completed"] = counts["processed"]
    if closed or begun:  # as in a checkpoint saved at the end of the last optimizer step
        for counts in (batch["current"], batch["total"]):
            done = counts["ready"] - begun
            counts.update(ready=done, started=done, processed=done, completed=done - 1)
        batch["is_last_batch"] = False
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step - 1
    return False


def rescale_progress(progress: dict[str, Any], *, old: int, new: int) -> None:
    """Convert Lightning's counts of micro-batches to a new accumulation; the number of optimizer steps stays.

    Args:
        progress: The saved state of the training loop's ``batch_progress``; changed in place.
        old: Micro-batches per optimizer step in the run that saved.
        new: Micro-batches per optimizer step now.
    """
    if old == new:
        return
    for counts in (progress["current"], progress["total"]):
        steps = counts["ready"] // old
        # A checkpoint is saved at the end of a batch, before Lightning counts the batch as completed.
        behind = {name: counts["ready"] - count for name, count in counts.items()}
        for name in counts:
            counts[name] = steps * new - behind[name]


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, as numbers and tensors."""
    # Nothing else, so that torch.load reads the file without running code.
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the generators to a state from :func:`random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to disk beside the destination and renames the file: a kill leaves the old or the new file.

    Lightning's own writer goes through the temporary folder, often on a different disk, from where the file is copied
    instead of renamed.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        assert storage_options is None, "for remote files only"
        with atomic_file(Path(path), single_writer=True) as file:
            torch.save(_on_cpu(checkpoint), file)


def _on_cpu(value: Any) -> Any:
    """The same nest of dictionaries and lists, with each tensor copied to main memory."""
    # A copy, because torch.save writes the whole storage of a view.
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if type(value) is dict:
        return {key: _on_cpu(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


@rank_zero_only
def show_restored(trainer: Trainer, pl_module: LightningModule, *, num_random: int) -> None:
    """Print the state at the start of a resumed run."""
    table = Table.grid(padding=(0, 2))
    for name, text in restored(trainer, pl_module, num_random=num_random).items():
        table.add_row(f"[bold]{name}[/bold]", text)
    console = rich.get_console()
    console.print("\n[bold]Resumed[/bold]")
    console.print(table)
    console.print()


def restored(trainer: Trainer, pl_module: LightningModule, *, num_random: int) -> dict[str, str]:
    """Step, epoch, position in the epoch, learning rate, random states and merges: a line for each."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready % int(trainer.num_training_batches)
    rates: set[str] = set()
    for optimizer in trainer.optimizers:
        rates |= {f"{group['lr']:.3g}" for group in optimizer.param_groups}
    adapter = getattr(pl_module, "adapter", None)
    groups = adapter.mergeable_groups().values() if isinstance(adapter, Adapter) else []
    now = trainer.world_size
    random_states = f"of {min(num_random, now)} of {now} processes"
    if num_random != now:
        random_states += f" (the checkpoint has {num_random}; the others are seeded anew)"
    lines = {
        "optimizer step": f"{trainer.global_step:,}",
        "epoch": f"{trainer.current_epoch}",
        "position": f"{batches:,} of the epoch's {trainer.num_training_batches:,} micro-batches",
        "learning rate": ", ".join(sorted(rates)),
        "random states": random_states,
    }
    if groups:
        lines["merges done"] = f"{sum(group.num_merges for group in groups)}"
    return lines
