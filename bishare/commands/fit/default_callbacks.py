"""Default callbacks: a command adds them to ``trainer.callbacks``, so that every run leaves adapter, curves and counts.

``fit`` adds ``RunSummary``, ``ParameterCount``, ``AdapterCheckpoint``, ``Throughput``, ``LearningRate`` and
``GradientNorm``. ``predict`` adds ``PredictionWriter``. All commands add ``RunSummary``, silent outside of ``fit``:
checkpoints hold a state of the callback, and Lightning warns of a state without a callback.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import BasePredictionWriter, Callback, LearningRateMonitor, ThroughputMonitor

SWITCH = "default_callbacks"
"""The option that turns all default callbacks off."""

HELP = (
    "Add RunSummary, ParameterCount, AdapterCheckpoint, Throughput, LearningRate and GradientNorm to trainer.callbacks "
    "(predict: PredictionWriter), each unless trainer.callbacks has a callback of its kind. LearningRate and "
    "GradientNorm need a logger; AdapterCheckpoint is left out with trainer.enable_checkpointing false."
)


class Default(NamedTuple):
    """A default callback, added unless the configuration has a callback of the same kind."""

    callback: type[Callback]
    kind: type[Callback]
    """The callback's own class, or the class of Lightning that the callback extends."""


def with_defaults(command: str, callbacks: Sequence[Callback], settings: Mapping[str, Any]) -> list[Callback]:
    """Add a command's default callbacks.

    Args:
        command: fit, validate, test or predict.
        callbacks: Callbacks of the configuration, in order.
        settings: The Trainer's arguments; ``logger``, ``enable_checkpointing`` and ``fast_dev_run`` are read.
    """
    # RunSummary prints before all others. ParameterCount counts after the callbacks that merge.
    first, last = _defaults(command, settings)
    return [*_missing(first, callbacks), *callbacks, *_missing(last, callbacks)]


def _defaults(command: str, settings: Mapping[str, Any]) -> tuple[list[Default], list[Default]]:
    """Default callbacks before the configuration's callbacks, and default callbacks behind."""
    from bishare.callbacks import (  # with matplotlib, which help does not need
        AdapterCheckpoint,
        GradientNorm,
        LearningRate,
        ParameterCount,
        PredictionWriter,
        RunSummary,
        Throughput,
    )

    first = [Default(RunSummary, RunSummary)]
    writes = not settings["fast_dev_run"]  # a try on a few batches that leaves no files
    if command == "predict" and writes:
        return first, [Default(PredictionWriter, BasePredictionWriter)]
    if command != "fit":
        return first, []
    last = [Default(ParameterCount, ParameterCount)]
    if writes and settings["enable_checkpointing"] is not False:
        last.append(Default(AdapterCheckpoint, AdapterCheckpoint))
    last.append(Default(Throughput, ThroughputMonitor))
    if settings["logger"] not in (False, []):  # without a logger Lightning's monitor raises
        last.append(Default(LearningRate, LearningRateMonitor))
        last.append(Default(GradientNorm, GradientNorm))
    return first, last


def _missing(defaults: Sequence[Default], callbacks: Sequence[Callback]) -> list[Callback]:
    missing = []
    for default in defaults:
        if not any(isinstance(callback, default.kind) for callback in callbacks):
            missing.append(default.callback())
    return missing
