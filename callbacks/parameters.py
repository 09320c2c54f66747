"""Shows the number of trainable values, at the start and after every merge."""

from typing import Any

import rich
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from typing_extensions import override

from bishare.adapters.counts import LORA_RANK, num_values
from bishare.analysis.parameters import ParameterReport, count_parameters

from .run import adapter_of, head_of, model_of


class ParameterCount(Callback):
    """Prints live and dead trainable parameters by part, beside LoRA of rank 8 on the same weights.

    The table appears when training starts. After every optimizer step with a merge, a line has the new numbers. The
    table appears again at the end of a run with merges.

    Logs:
        ``params/live``: values read by some weight's update.
        ``params/dead``: values of merged layers, read by no update any more.
        ``params/fraction_of_lora``: live values over the values of LoRA with rank 8 on the same weights.
    """

    def __init__(self) -> None:
        # Numbers of live values: in the table printed last, in the table or line printed last, and logged last.
        self._tabled: int | None = None
        self._shown: int | None = None
        self._logged: int | None = None
        self._last_step = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tabled = self._shown = self._logged = None
        self._table(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log here: only now a resumed run knows its step, and under DeepSpeed its merges."""
        self._last_step = trainer.global_step
        self._table(pl_module)
        self._log(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # a further micro-batch of the same optimizer step
            return
        self._last_step = trainer.global_step
        self._line(pl_module)
        self._log(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._table(pl_module)

    @rank_zero_only
    def _table(self, pl_module: LightningModule) -> None:
        live = num_values(adapter_of(pl_module).live_parameters().values())
        if live != self._tabled:
            self._tabled = self._shown = live
            rich.get_console().print(parameter_table(_count(pl_module)))

    @rank_zero_only
    def _line(self, pl_module: LightningModule) -> None:
        live = num_values(adapter_of(pl_module).live_parameters().values())
        if live != self._shown:
            self._shown = live
            report = _count(pl_module)
            rich.get_console().print(
                f"Trainable parameters: {report.num_live:,} live, {report.num_dead:,} dead, "
                f"{report.fraction_of_lora:.1%} of LoRA r={LORA_RANK}"
            )

    @rank_zero_only
    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._shown == self._logged:
            return
        self._logged = self._shown
        report = _count(pl_module)
        metrics = {
            "params/live": report.num_live,
            "params/dead": report.num_dead,
            "params/fraction_of_lora": report.fraction_of_lora,
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def _count(pl_module: LightningModule) -> ParameterReport:
    return count_parameters(adapter_of(pl_module), model_of(pl_module), head_of(pl_module).values())


def parameter_table(report: ParameterReport) -> Table:
    """The report as a table for the console."""
    table = Table(title="Trainable parameters", title_justify="left", show_footer=False)
    table.add_column("part")
    table.add_column("live", justify="right")
    if report.num_dead:
        table.add_column("dead", justify="right")
    parts = list(report.live)
    for part in parts:
        numbers = _numbers(report, report.live[part], report.dead[part])
        table.add_row(part, *numbers, end_section=part == parts[-1])
    table.add_row("all", *_numbers(report, report.num_live, report.num_dead), style="bold")
    table.add_row(f"of LoRA r={LORA_RANK} ({report.lora:,})", f"{report.fraction_of_lora:.1%}")
    table.add_row(f"of the base ({report.base:,})", f"{report.fraction_of_base:.2%}")
    if report.head:
        table.add_row("head, trained in full, apart from these", f"{report.head:,}")
    return table


def _numbers(report: ParameterReport, live: int, dead: int) -> list[str]:
    """The cells of a row: the column of dead values exists only after a merge."""
    numbers = [f"{live:,}"]
    if report.num_dead:
        numbers.append(f"{dead:,}")
    return numbers
