"""Measures the rank of every update during training."""

from collections import defaultdict
from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from bishare.adapters.factors import Slot
from bishare.analysis.levels import measure_levels
from bishare.analysis.plots.heatmaps import heat_map
from bishare.analysis.ranks import UpdateRank
from bishare.errors import UserError

from .run import adapter_of, tensorboards


class Measure(NamedTuple):
    """A measure of an update, and its drawing options."""

    title: str
    of: Callable[[UpdateRank], float]
    digits: int
    """Decimals in the heat map."""


MEASURES = {
    "numerical_rank": Measure("numerical rank", lambda rank: rank.numerical, 0),
    "effective_rank": Measure("effective rank", lambda rank: rank.effective, 1),
    "update_norm": Measure("norm of the update", lambda rank: rank.norm, 2),
}


class RankMonitor(Callback):
    """Measures ranks and norm of the updates every few optimizer steps and at the end, by level, kind and layer.

    Rank zero measures, from the factors alone (``bishare.analysis.ranks``). ``<level>`` is ``local``, ``intra`` or
    ``inter``, or ``whole`` for the sum of all levels of a weight.

    Args:
        every_n_steps: Optimizer steps between two measurements.

    Logs:
        ``numerical_rank/<level>/<kind>``: mean over layers of the number of singular values distinguishable from zero
            in fp32.
        ``effective_rank/<level>/<kind>``: mean over layers of the exponential of the spectrum's entropy.
        ``update_norm/<level>/<kind>``: mean over layers of the Frobenius norm.
        ``numerical_rank``, ``effective_rank``, ``update_norm`` (images): the values by layer and kind.

    Raises:
        UserError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise UserError(f"RankMonitor: every_n_steps is {every_n_steps}; it must be at least 1 optimizer step.")
        self.every_n_steps = every_n_steps
        self._last_step = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step - self._last_step >= self.every_n_steps:
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._last_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        adapter = adapter_of(pl_module)
        ranks = measure_levels(adapter)
        means = {}
        for name, measure in MEASURES.items():
            for level, slots in ranks.items():
                for kind, mean in mean_by_kind(slots, measure).items():
                    means[f"{name}/{level}/{kind}"] = mean
        for logger in trainer.loggers:
            logger.log_metrics(means, step=trainer.global_step)
        kinds = list(dict.fromkeys(slot.kind for slot in adapter.slots))
        # Drawing takes longer than measuring: only for a logger that shows images.
        for tensorboard in tensorboards(trainer):
            for name, measure in MEASURES.items():
                title = f"{measure.title}, step {trainer.global_step:,}"
                figure = heat_map(_panels(ranks, measure), title=title, kinds=kinds, digits=measure.digits)
                tensorboard.add_figure(name, figure, self._last_step)


def _panels(ranks: dict[str, dict[Slot, UpdateRank]], measure: Measure) -> dict[str, dict[tuple[int, str], float]]:
    """Values of a measure by level, and by layer and kind."""
    panels = {}
    for level, slots in ranks.items():
        panels[level] = {(slot.layer, slot.kind): measure.of(rank) for slot, rank in slots.items()}
    return panels


def mean_by_kind(slots: dict[Slot, UpdateRank], measure: Measure) -> dict[str, float]:
    """Mean over layers, by kind."""
    values: dict[str, list[float]] = defaultdict(list)
    for slot, rank in slots.items():
        values[slot.kind].append(measure.of(rank))
    return {kind: fmean(of_kind) for kind, of_kind in values.items()}
