"""Prints model, method and data of a run at the start, and losses, time and folders at the end."""

import shlex
import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import rich
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.markup import escape
from typing_extensions import override

from bishare.adapters.base import Adapter, AdapterConfig

from .checkpoint import AdapterCheckpoint
from .run import adapter_folder, adapter_of, base_of, model_of, shown, tensorboards

VAL_LOSS = "val/loss"
"""Metric compared before and after training."""


class RunSummary(Callback):
    """Prints model, method, data and strategy at the start; at the end losses before and after, time and folders.

    Lightning's sanity check measures the loss before training if the check runs over the whole validation set
    (``num_sanity_val_steps: -1``). A resumed run keeps the loss from before its first step.

    Logs:
        ``val/loss``: the loss before training, at step 0.
    """

    def __init__(self) -> None:
        self._before: float | None = None
        self._after: tuple[int, float] | None = None  # optimizer step, loss
        self._scores: dict[str, float] = {}  # empty for a language model
        self._started: float | None = None  # seconds, monotonic

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._after = None
        self._started = time.monotonic()
        show_lines(start_lines(trainer, pl_module))

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = trainer.num_sanity_val_batches == trainer.num_val_batches
        # Lightning repeats the check when a run resumes at the end of an epoch.
        if trainer.global_step > 0 or not whole or VAL_LOSS not in trainer.callback_metrics:
            return
        self._before = float(trainer.callback_metrics[VAL_LOSS])
        for tensorboard in tensorboards(trainer):
            tensorboard.add_scalar(VAL_LOSS, self._before, 0)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and VAL_LOSS in trainer.callback_metrics:
            self._after = trainer.global_step, float(trainer.callback_metrics[VAL_LOSS])
            self._scores = scores(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The progress bar's live display must end first, or it would be drawn over the summary.
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.teardown(trainer, pl_module, stage="fit")
        show_lines(self._end_lines(trainer))

    def _end_lines(self, trainer: Trainer) -> dict[str, str]:
        assert self._started is not None
        steps = trainer.global_step
        lines = {"validation": loss_line(self._before, self._after, steps)}
        if self._scores:
            lines["scores"] = ", ".join(f"{name} {value:.3f}" for name, value in self._scores.items())
        lines["time"] = f"{duration(time.monotonic() - self._started)} for {counted(steps, 'optimizer step')}"
        if any(isinstance(callback, AdapterCheckpoint) for callback in trainer.callbacks):  # type: ignore[attr-defined]  # set in Trainer.__init__
            lines["adapter"] = shown(adapter_folder(trainer))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                lines["logs"] = tensorboard_command(Path(logger.log_dir))
        return lines


@rank_zero_only
def show_lines(lines: dict[str, str]) -> None:
    """Print a line each, wrapped by the terminal alone: a command must stay copyable."""
    console = rich.get_console()
    console.print()
    for name, text in lines.items():
        console.print(f"[bold]{name:<12}[/bold]{escape(text)}", soft_wrap=True, highlight=False)
    console.print()


def start_lines(trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
    """Model, method, data and strategy, a line each."""
    adapter, model = adapter_of(pl_module), model_of(pl_module)
    dtypes = set()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            dtypes.add(str(parameter.dtype).removeprefix("torch."))
    return {
        "model": f"{base_of(pl_module) or type(model).__name__}, {', '.join(sorted(dtypes)) or 'trained whole'}",
        "method": describe(adapter),
        "data": describe_data(trainer),
        "strategy": f"{trainer.world_size} x {trainer.strategy.root_device.type}, {type(trainer.strategy).__name__}, "
        f"precision {trainer.precision}",
    }


def describe(adapter: Adapter) -> str:
    """The method with its own options, and the adapted weights."""
    common = {field.name for field in fields(AdapterConfig)}
    own = []
    for field in fields(adapter.config):
        if field.name not in common:
            own.append(f"{field.name} {getattr(adapter.config, field.name)}")
    kinds = ", ".join(dict.fromkeys(slot.kind for slot in adapter.slots))
    num_layers = len({slot.layer for slot in adapter.slots})
    return f"{adapter.config.method} ({', '.join(own)}) on {kinds} of {num_layers} layers"


def describe_data(trainer: Trainer) -> str:
    """The data module, the size of an optimizer step, and the number of steps."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set in Trainer.fit
    # A user's own data module need not have our attributes.
    words = ["a plain loader" if data is None else type(data).__name__]
    if hasattr(data, "batch_size"):
        parts = trainer.accumulate_grad_batches
        words.append(f"{data.batch_size} examples per step")
        if parts > 1:
            words[-1] += f" in {parts} micro-batches"
    if hasattr(data, "steps_per_epoch"):
        words.append(f"{counted(data.steps_per_epoch, 'step')} per epoch")
    if trainer.max_steps != -1:
        words.append(f"at most {counted(trainer.max_steps, 'step')}")
    elif trainer.max_epochs is not None and trainer.max_epochs != -1:
        words.append(counted(trainer.max_epochs, "epoch"))
    return ", ".join(words)


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural except for 1."""
    ending = "" if number == 1 else "s"
    return f"{number:,} {noun}{ending}"


def loss_line(before: float | None, after: tuple[int, float] | None, last_step: int) -> str:
    """Both losses and their difference, or the reason why a loss was not measured."""
    if after is None:
        return "the loss was not measured (no validation ran; see val_check_interval)"
    step, loss = after
    when = "after" if step == last_step else f"at step {step:,}"
    if before is None:
        return f"loss {loss:.3f} {when} (before: not measured; num_sanity_val_steps: -1 does)"
    return f"loss {before:.3f} before, {loss:.3f} {when}: {loss - before:+.3f} nats"


def scores(trainer: Trainer) -> dict[str, float]:
    """The last validation metrics of a classifier; empty for a language model."""
    found = {}
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/"):
            found[name.removeprefix("val/")] = float(value)
    if "score" not in found:  # only classifiers log val/score, the mean of the task's metrics
        return {}
    del found["score"]
    found.pop(VAL_LOSS.removeprefix("val/"), None)
    return found


def duration(seconds: float) -> str:
    """Time in the two largest units."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {seconds} s"
    return f"{seconds} s"


def tensorboard_command(folder: Path) -> str:
    """The command that opens the logs, with the path of this Python's TensorBoard if the shell would not find it."""
    # A virtual environment that is not activated is not on the PATH.
    beside = Path(sys.executable).with_name("tensorboard")
    found = shutil.which("tensorboard")
    here = beside.exists() and (found is None or not Path(found).samefile(beside))
    return shlex.join([shown_program(beside) if here else "tensorboard", "--logdir", shown(folder)])


def shown_program(path: Path) -> str:
    """Like ``shown``, but without following links: a program of a virtual environment keeps its path there."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
