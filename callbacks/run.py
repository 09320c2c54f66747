"""Accessors for the callbacks of a running training: adapter, base model, run folder, TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from bishare.adapters.base import Adapter
from bishare.errors import UserError
from bishare.training.module import BiShareModule


def adapter_of(pl_module: LightningModule) -> Adapter:
    """The module's adapter.

    Raises:
        UserError: The module has no adapter.
    """
    adapter = getattr(pl_module, "adapter", None)
    if not isinstance(adapter, Adapter):
        raise UserError(
            f"{type(pl_module).__name__} has no adapter to look at; train a BiShareModule, "
            "or give your module an attribute `adapter` in configure_model."
        )
    return adapter


def model_of(pl_module: LightningModule) -> nn.Module:
    """The model with the adapter: the module's ``model``, or the module itself."""
    model = getattr(pl_module, "model", None)
    return model if isinstance(model, nn.Module) else pl_module


def head_of(pl_module: LightningModule) -> Mapping[str, nn.Parameter]:
    """Parameters trained in full beside the adapter, by name in the model: a classification head."""
    return pl_module.head() if isinstance(pl_module, BiShareModule) else {}


def base_of(pl_module: LightningModule) -> str:
    """Name of the base model as given by the user; empty if the module has no name."""
    return str(getattr(pl_module, "base", "") or pl_module.hparams.get("base", ""))


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run."""
    return Path(trainer.default_root_dir)


def adapter_folder(trainer: Trainer) -> Path:
    """The folder of a run's adapter."""
    return run_folder(trainer) / "adapter"


def tensorboards(trainer: Trainer) -> list[Any]:
    """The SummaryWriter of every TensorBoard logger; writers do nothing except on rank zero."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def shown(path: Path) -> str:
    """A path for people: relative to the current folder if the path lies below, else absolute."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
