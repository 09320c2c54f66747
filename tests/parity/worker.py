"""Trains the real module for a few steps under one strategy after another, in every process of a launch.

A test calls :func:`train` in its own process, or :func:`train_all` in two, and compares what they recorded.
"""

import gc
import random
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from bishare.adapters.base import Adapter
from bishare.adapters.registry import config_class
from bishare.callbacks import GradientNorm
from bishare.data.encoding import Example
from bishare.data.examples import Examples, Pack
from bishare.data.step_sampler import StepLoader, StepSampler
from bishare.deepspeed import BiShareDeepSpeed
from bishare.distributed.partitions import full_fp32
from bishare.training.module import BiShareModule

VOCABULARY = 128


class Sentences(LightningDataModule):
    """Random sequences of unequal length, half of their tokens labelled, through the real sampler and loader."""

    def __init__(self, *, steps_per_epoch: int, accumulation: int, num_workers: int) -> None:
        super().__init__()
        self.steps_per_epoch, self.accumulation, self.num_workers = steps_per_epoch, accumulation, num_workers

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.trainer.accumulate_grad_batches = self.accumulation

    def examples(self) -> Examples:
        generator, examples = torch.Generator().manual_seed(1), []
        for _ in range(8 * self.steps_per_epoch):
            length = int(torch.randint(4, 16, (), generator=generator))
            tokens = torch.randint(3, VOCABULARY, (length,), generator=generator)
            labels = tokens.where(torch.rand(length, generator=generator) < 0.5, torch.tensor(-100))
            labels[-1] = tokens[-1]
            examples.append(Example(tokens.tolist(), labels.tolist(), cut=False))
        return Examples(examples, pad_token_id=0)

    def validation(self) -> DataLoader[Any]:
        data = self.examples()
        return DataLoader([data[Pack((i,))] for i in range(4)], batch_size=None, generator=torch.Generator())

    def train_dataloader(self) -> StepLoader:
        assert self.trainer is not None
        data = self.examples()
        sampler = StepSampler(
            data.num_labels,
            data.make_packs,
            batch_size=8,
            accumulation=self.accumulation,
            world_size=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )
        return StepLoader(data, sampler, num_workers=self.num_workers)


class Recorder(Callback):
    """Logged loss and gradient norm of every optimizer step, and the types of all that is trained after the first."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.types: dict[str, str] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.losses) or trainer.fit_loop._should_accumulate():
            return
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))
        if not self.types:
            self.types = types(trainer, pl_module)


def types(trainer: Trainer, module: BiShareModule) -> dict[str, str]:
    """Type of the frozen base, the masters, the moments and the running means, as they are held."""
    adapter = module.adapter
    base = {p.dtype for p in module.parameters() if not p.requires_grad}
    state = trainer.strategy.optimizers[0]
    inner = getattr(state, "optimizer", state)
    masters = {p.dtype for p in adapter.parameters()}
    if isinstance(trainer.strategy, BiShareDeepSpeed):
        flats = getattr(state, "fp32_partitioned_groups_flat", None) or state.single_partition_of_fp32_groups
        masters = {flat.dtype for flat in flats}
    moments = {v.dtype for own in inner.state.values() for v in own.values() if v.dim()}
    means = {buffer.dtype for name, buffer in adapter.named_buffers() if name.endswith("mean")}
    found = {"base": base, "masters": masters, "moments": moments, "means": means}
    return {name: ", ".join(sorted(str(dtype) for dtype in dtypes)) for name, dtypes in found.items()}


def live_values(adapter: Adapter) -> dict[str, torch.Tensor]:
    live = adapter.live_parameters()
    return {n: v.clone().cpu() for n, v in zip(live, full_fp32(list(live.values())), strict=True)}


class Onlooker(Callback):
    """Looks at every slot's factors on rank zero alone between the steps, as a monitor does."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.is_global_zero:
            with torch.no_grad():
                for slot in pl_module.adapter.slots:
                    assert all(factors.B.isfinite().all() for factors in pl_module.adapter.parts(slot).values())


class Start(Callback):
    """What training starts from."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.values = live_values(pl_module.adapter)
        self.shells = sum(p.numel() == 0 for p in pl_module.parameters())


class End(Callback):
    """What training ends with, read while the strategy is still up."""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.values = live_values(pl_module.adapter)


class Stop(Callback):
    """Ends the training after an optimizer step, as a user or a timer may."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


class Midway(Callback):
    """Saves after numbers of micro-batches, inside an optimizer step, as a timer may."""

    def __init__(self, paths: dict[int, str]) -> None:
        self.paths = paths

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        path = self.paths.get(trainer.fit_loop.total_batch_idx + 1)
        if path is not None:
            trainer.save_checkpoint(path)


class Dice(Callback):
    """Draws random numbers between the steps, as dropout would in them, more of them on the second rank."""

    def __init__(self) -> None:
        self.rolls: list[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        draws = [torch.rand(()), np.random.rand(), random.random()]
        self.rolls.append([float(draw) for draw in draws for _ in range(1 + trainer.global_rank)])
        torch.rand(trainer.global_rank)


def strategy_of(name: str) -> Any:
    match name:
        case "one":
            return "auto"
        case "ddp":
            return DDPStrategy()
    return BiShareDeepSpeed(stage=int(name[-1]))  # type: ignore[arg-type]


def merging(options: dict[str, Any] | None) -> list[Callback]:
    if options is None:
        return []
    from callbacks import AdaptiveMerging

    return [AdaptiveMerging(**options)]


def train(run: dict[str, Any]) -> dict[str, Any]:
    """Train as ``run`` says.

    ``strategy``, ``method``, ``options`` of the method, ``base`` (a folder), ``steps``; and, if given, ``dtype``,
    ``clip``, ``folder`` (checkpoints go there), ``every`` (optimizer steps between two), ``keep`` all of them,
    ``resume``, ``num_workers``, ``merging`` (options of the callback), ``steps_per_epoch``, ``warmup``, ``validate``
    (micro-batches, or the part of an epoch, between two validations), ``stop`` (after that optimizer step),
    ``evaluate`` (a checkpoint to validate instead), ``midway`` (from numbers of micro-batches to the
    path of a checkpoint after so many), ``rate`` (of learning), ``adapter`` (keep its folder beside the checkpoints).
    """
    lightning.seed_everything(7, verbose=False)
    dtype, strategy = run.get("dtype", "float32"), run["strategy"]
    module = BiShareModule(
        run["base"],
        config_class(run["method"])(**run["options"]),
        base_dtype=dtype,
        learning_rate=run.get("rate", 1e-3),
        warmup_steps=run.get("warmup", 2),
        gradient_checkpointing=True,
    )
    recorder, start, end, dice = Recorder(), Start(), End(), Dice()
    merging_callbacks: list[Any] = merging(run.get("merging"))
    callbacks: list[Callback] = [GradientNorm(), recorder, start, end, dice, Onlooker(), *merging_callbacks]
    if "stop" in run:
        callbacks.append(Stop(run["stop"]))
    if "midway" in run:
        callbacks.append(Midway(run["midway"]))
    if run.get("adapter"):
        from callbacks import AdapterCheckpoint

        callbacks.append(AdapterCheckpoint())
    if "folder" in run:
        callbacks.append(
            ModelCheckpoint(
                run["folder"],
                filename="{step}",
                every_n_train_steps=run.get("every", 1),
                save_top_k=-1 if run.get("keep") else 0,
                save_last=True,
                enable_version_counter=False,
            )
        )
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy == "one" else 2,
        strategy=strategy_of(strategy),
        precision="bf16-mixed" if dtype == "bfloat16" and strategy.startswith("zero") else "32-true",
        max_steps=run["steps"],
        val_check_interval=run.get("validate", 1.0),
        num_sanity_val_steps=0,
        max_epochs=4,
        gradient_clip_val=run.get("clip"),
        callbacks=callbacks,
        default_root_dir=run.get("folder", run.get("root")),
        enable_checkpointing="folder" in run,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    data = Sentences(
        steps_per_epoch=run.get("steps_per_epoch", 5), accumulation=2, num_workers=run.get("num_workers", 0)
    )
    if "validate" in run:
        data.val_dataloader = data.validation  # type: ignore[method-assign]
    if "evaluate" in run:
        (metrics,) = trainer.validate(module, data, ckpt_path=run["evaluate"], verbose=False)
        return dict(metrics)
    trainer.fit(module, data, ckpt_path=run.get("resume"))
    record = {
        "losses": recorder.losses,
        "norms": recorder.norms,
        "types": recorder.types,
        "start": start.values,
        "shells": start.shells,
        "end": end.values,
        "rolls": everywhere(dice.rolls),
        "steps": trainer.global_step,
        "logged_steps": trainer.fit_loop.epoch_loop._batches_that_stepped,  # what loggers are given
        "owners": {g.name: g.owners for g in module.adapter.mergeable_groups().values()},
        "merges": [(r.step, r.group, r.layer, r.uses) for c in merging_callbacks for r in c._records],
    }
    del module, trainer, data, callbacks, merging_callbacks
    gc.collect()
    return record


def everywhere(value: Any) -> list[Any]:
    """The value of every rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def train_all(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run after another; the record of each."""
    return [train(run) for run in runs]
