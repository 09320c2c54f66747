"""The plan as tables for a terminal."""

import rich
from rich.markup import escape
from rich.table import Table

from bishare.adapters.counts import LORA_RANK
from bishare.commands.plan.plan import Plan
from bishare.commands.tables import size


def show(plan: Plan) -> None:
    """Print the plan."""
    console = rich.get_console()
    for table in (parameter_table(plan), memory_table(plan), facts_table(plan)):
        console.print(table)
    for warning in plan.warnings:
        console.print(f"[bold yellow]note[/bold yellow]  {escape(warning)}", highlight=False)


def parameter_table(plan: Plan) -> Table:
    """Trained values by part, beside LoRA and the base."""
    report = plan.parameters
    weights = f"{plan.num_slots} weights in {plan.num_layers} layers"
    table = Table("part", title=f"{escape(plan.base)}: {plan.method} on {weights}", title_justify="left")
    table.add_column("values", justify="right")
    for place, (part, values) in enumerate(report.live.items(), start=1):
        table.add_row(part, f"{values:,}", end_section=place == len(report.live))
    table.add_row("all", f"{report.num_live:,}", style="bold")
    if plan.merged:
        table.add_row("all, after merging", f"{plan.merged.num_live:,}", style="bold")
        report = plan.merged
    table.add_row(f"of LoRA r={LORA_RANK} ({report.lora:,})", f"{report.fraction_of_lora:.1%}")
    table.add_row(f"of the base ({report.base:,})", f"{report.fraction_of_base:.3%}")
    if report.head:
        table.add_row("head, trained in full, apart from these", f"{report.head:,}")
    return table


def memory_table(plan: Plan) -> Table:
    """Bytes per device, a column for each number of devices."""
    where = "process" if plan.device == "cpu" else "GPU"
    title = f"Estimated memory per {where}: {plan.strategy}, {plan.precision}"
    table = Table("", title=title, title_justify="left")
    plural = "processes" if plan.device == "cpu" else "GPUs"
    for count in plan.memory:
        table.add_column(f"{count} {where if count == 1 else plural}", justify="right")
    estimates = list(plan.memory.values())
    names = list(vars(estimates[0]))
    for name in names:
        table.add_row(name, *(size(vars(e)[name]) for e in estimates), end_section=name == names[-1])
    table.add_row("all", *(size(e.total) for e in estimates), style="bold")
    return table


def facts_table(plan: Plan) -> Table:
    """Ranks, files and steps."""
    table = Table.grid(padding=(0, 2))
    ranks = {f"{kind} {rank}" for kind, rank in plan.rank_bounds.items()}
    same = len(set(plan.rank_bounds.values())) == 1
    table.add_row("rank at most", str(plan.rank) if same else ", ".join(sorted(ranks)))
    files = plan.files
    table.add_row("files", f"adapter {size(files.adapter)}, PEFT export {size(files.peft)}")
    table.add_row("checkpoint", size(files.checkpoint))
    table.add_row("steps", steps_line(plan))
    return table


def steps_line(plan: Plan) -> str:
    """Optimizer steps of an epoch and of the run, as far as known."""
    known = f"about {plan.steps_per_epoch:,}" if plan.steps_per_epoch else "an unknown number (the data is not here)"
    limit = f"; at most {plan.max_steps:,} in all" if plan.max_steps else ""
    return f"{known} per epoch of {plan.batch_size} examples each{limit}"
