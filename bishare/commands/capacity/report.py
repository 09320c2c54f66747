"""The capacity of a budget as tables for a terminal and as a plot."""

import rich
from matplotlib.figure import Figure
from rich.table import Table

from bishare.analysis.plots.figure import new_figure
from bishare.commands.capacity.measure import COUNTS, PUBLISHED, PUBLISHED_BASE, Report, fitting
from bishare.commands.tables import size, table_of_figures

SHOWN = (100, 500, 1000, 1500)
"""Numbers of adapters in the table of memory."""


def show(report: Report) -> None:
    """Print the report."""
    console = rich.get_console()
    for table in (own_table(report), export_table(report), memory_table(report)):
        console.print(table)
    for name, budget in report.budgets.items():
        console.print(f"{name}: {budget:,} bytes, of which the base takes {report.base_bytes:,}", highlight=False)
    for name, (each, count) in PUBLISHED.items() if report.published else ():
        needed = f"{each:,.0f} bytes each, {PUBLISHED_BASE:,.0f} for the base: {PUBLISHED_BASE + count * each:,.0f}"
        console.print(f"published: {count:,} {name}, {needed} bytes", highlight=False)


def own_table(report: Report) -> Table:
    """Numbers of adapters that fit in their own form, and the times to load and switch."""
    table = table_of_figures("fit, own form", ("values", "fp32", *report.budgets, "load", "switch"))
    for m in report.methods:
        fits = [f"{fitting(budget, report.base_bytes, m.own, m.once):,}" for budget in report.budgets.values()]
        times = f"{m.load_ms:.0f} ms", f"{m.switch_ms:.0f} ms"
        table.add_row(m.method, f"{m.num_values / 1e6:.2f} M", size(m.own), *fits, *times)
    return table


def export_table(report: Report) -> Table:
    """Numbers of exports that fit in vLLM's slots, as plain LoRAs in the type of the base."""
    table = table_of_figures("fit in vLLM's slots", ("rank", "slot's", "bytes", *report.budgets))
    for m in report.methods:
        if m.slot is None:
            table.add_row(m.method, str(m.rank), "none")
            continue
        fits = [f"{fitting(budget, report.base_bytes, m.slot):,}" for budget in report.budgets.values()]
        table.add_row(m.method, str(m.rank), str(m.slot_rank), size(m.slot), *fits)
    return table


def memory_table(report: Report) -> Table:
    """GB of N adapters with the base; in the last columns adapters alone, counted and measured."""
    table = table_of_figures("GB for N adapters", (*(f"{count:,}" for count in SHOWN), "held", "counted", "measured"))
    for m in report.methods:
        counted = [f"{(report.base_bytes + m.memory(count)) / 1e9:.1f}" for count in SHOWN]
        most = max(m.held, default=None)
        held = () if most is None else (f"{most:,}", f"{m.memory(most) / 1e9:.2f}", f"{m.held[most] / 1e9:.2f}")
        table.add_row(m.method, *counted, *held)
    return table


def plot(report: Report) -> Figure:
    """Memory with the base against the number of adapters: counted (lines), measured (dots), published (dashes)."""
    figure = new_figure(8.5, 5.0, dpi=120)
    axis = figure.subplots()
    for m in report.methods:
        (line,) = axis.plot(COUNTS, [(report.base_bytes + m.memory(n)) / 1e9 for n in COUNTS], label=m.method)
        measured = {n: (report.base_bytes + grown) / 1e9 for n, grown in m.held.items()}
        axis.plot(list(measured), list(measured.values()), "o", markersize=5, color=line.get_color())
    if report.published:
        for name, (each, _) in PUBLISHED.items():
            memory = [(PUBLISHED_BASE + n * each) / 1e9 for n in COUNTS]
            axis.plot(COUNTS, memory, "--", color="gray", label=f"published: {name}")
    budget = next(iter(report.budgets.values())) / 1e9
    axis.axhline(budget, color="black", linewidth=0.8)
    axis.annotate(f"{budget:g} GB", (COUNTS[0], budget), xytext=(0, 3), textcoords="offset points", fontsize=8)
    axis.set(xlabel="adapters", ylabel="GB, with the base", title=f"Adapters of {report.base} (dots: really held)")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    return figure
