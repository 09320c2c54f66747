"""Watches the rank of every update while it is learned."""

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
    title: str
    of: Callable[[UpdateRank], float]
    digits: int  # decimals in the heat map


MEASURES = {
    "numerical_rank": Measure("numerical rank", lambda rank: rank.numerical, 0),
    "effective_rank": Measure("effective rank", lambda rank: rank.effective, 1),
    "update_norm": Measure("norm of the update", lambda rank: rank.norm, 2),
}


class RankMonitor(Callback):
    """Measures the updates every few optimizer steps and when training ends: ranks and norm, by level, kind and layer.

    Works on the factors (see ``bishare.analysis.ranks``), on rank zero. ``<level>`` is ``local``, ``intra`` or
    ``inter``, or ``whole`` for the sum of all levels of a weight.

    Args:
        every_n_steps: Optimizer steps between two measurements.

    Logs:
        ``numerical_rank/<level>/<kind>``: mean over layers of the singular values that fp32 tells from zero.
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
            self._watch(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._last_step:
            self._watch(trainer, pl_module)

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        adapter = adapter_of(pl_module)
        ranks = measure_levels(adapter)
        means = {
            f"{name}/{level}/{kind}": mean
            for name, what in MEASURES.items()
            for level, slots in ranks.items()
            for kind, mean in mean_by_kind(slots, what).items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(means, step=trainer.global_step)
        kinds = list(dict.fromkeys(slot.kind for slot in adapter.slots))
        for tensorboard in tensorboards(trainer):
            for name, (title, of, digits) in MEASURES.items():
                panels = {
                    level: {(slot.layer, slot.kind): of(rank) for slot, rank in slots.items()}
                    for level, slots in ranks.items()
                }
                title = f"{title}, step {trainer.global_step:,}"
                tensorboard.add_figure(name, heat_map(panels, title=title, kinds=kinds, digits=digits), self._last_step)


def mean_by_kind(slots: dict[Slot, UpdateRank], what: Measure) -> dict[str, float]:
    """Mean over layers, by kind."""
    values: dict[str, list[float]] = defaultdict(list)
    for slot, rank in slots.items():
        values[slot.kind].append(what.of(rank))
    return {kind: fmean(of_kind) for kind, of_kind in values.items()}
