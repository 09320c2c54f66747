"""The report of a capacity as tables and as a plot."""

from dataclasses import replace

import pytest
import rich
from rich.console import Console
from rich.table import Table

from bishare.commands.capacity.measure import COUNTS, PUBLISHED, Capacity, Report
from bishare.commands.capacity.report import export_table, memory_table, own_table, plot, show

MINE = Capacity(
    method="mine",
    num_values=2_000_000,
    own=8_000_000,
    once=0,
    rank=8,
    slot_rank=8,
    slot=10_000_000,
    held={100: 810_000_000},
    load_ms=3.0,
    switch_ms=5.0,
)
WIDE = replace(MINE, method="wide", rank=600, slot_rank=None, slot=None, held={})
REPORT = Report(
    base="me/mine",
    base_bytes=2_000_000_000,
    budgets={"10 GB": 10_000_000_000},
    methods=[MINE, WIDE],
    published=False,
)


def printed(table: Table) -> list[list[str]]:
    """The cells of each row."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    rows = [line.split("│")[1:-1] for line in capture.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_own_form_counts_what_fits() -> None:
    mine, _ = printed(own_table(REPORT))
    assert mine == ["mine", "2.00 M", "8.0 MB", "1,000", "3 ms", "5 ms"]


def test_rank_without_slot_has_no_export() -> None:
    mine, wide = printed(export_table(REPORT))
    assert mine == ["mine", "8", "8", "10.0 MB", "800"]
    assert wide == ["wide", "600", "none", "", ""]


def test_memory_stands_counted_and_measured() -> None:
    mine, wide = printed(memory_table(REPORT))
    assert mine == ["mine", "2.8", "6.0", "10.0", "14.0", "100", "0.80", "0.81"]
    assert wide[-3:] == ["", "", ""]


def test_published_numbers_are_shown_for_their_base(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich, "get_console", lambda: Console(width=200))
    show(REPORT)
    assert "published" not in capsys.readouterr().out
    show(replace(REPORT, published=True))
    assert "published: 3,878 Bi-Share" in capsys.readouterr().out


def test_plot_has_a_line_for_each_method() -> None:
    (axis,) = plot(replace(REPORT, published=True)).axes
    lines = {line.get_label(): line for line in axis.lines}
    assert {"mine", "wide", *(f"published: {name}" for name in PUBLISHED)} <= set(lines)
    assert lines["mine"].get_ydata()[0] == pytest.approx((2_000_000_000 + COUNTS[0] * 8_000_000) / 1e9)
