"""A plan as tables for a terminal."""

from dataclasses import replace
from functools import cache

import pytest
from rich.console import Console
from rich.table import Table

from bishare.commands.config.settings import read_settings
from bishare.commands.plan.plan import Plan, make_plan
from bishare.commands.plan.tables import facts_table, memory_table, parameter_table, show, steps_line
from tests.places import CONFIGS


@cache
def plan() -> Plan:
    return make_plan(read_settings(["--config", str(CONFIGS / "llama13b.yaml")]))


def printed(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_tables_hold_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    show(plan())

    shown = capsys.readouterr().out
    for figure in ("2,884,544", "21,954,560", "13,015,864,320", "intra.kernel", "activations", "slot of 32"):
        assert figure in shown


def test_merged_count_has_its_row() -> None:
    assert "after merging" not in printed(parameter_table(replace(plan(), merged=None)))
    merged = replace(plan().parameters, live={"B": 1_234_567})
    shown = printed(parameter_table(replace(plan(), merged=merged)))
    assert "all, after merging" in shown
    assert "1,234,567" in shown


def test_head_is_counted_apart() -> None:
    with_head = replace(plan(), merged=None, parameters=replace(plan().parameters, head=4_098))
    assert "4,098" in printed(parameter_table(with_head))


def test_memory_names_its_devices() -> None:
    estimate = next(iter(plan().memory.values()))
    on_gpus = printed(memory_table(replace(plan(), memory={1: estimate, 2: estimate}, device="gpu")))
    assert "1 GPU " in on_gpus
    assert "2 GPUs" in on_gpus
    assert "2 processes" in printed(memory_table(replace(plan(), memory={2: estimate}, device="cpu")))


def test_ranks_are_listed_where_they_differ() -> None:
    assert "q 4, v 8" in printed(facts_table(replace(plan(), rank_bounds={"q": 4, "v": 8})))
    assert "rank at most  8 " in printed(facts_table(replace(plan(), rank_bounds={"q": 8, "v": 8})))


def test_steps_are_said_as_far_as_known() -> None:
    known = replace(plan(), steps_per_epoch=1_200, max_steps=3_000, batch_size=8)
    assert steps_line(known) == "about 1,200 per epoch of 8 examples each; at most 3,000 in all"
    unknown = replace(plan(), steps_per_epoch=None, max_steps=None, batch_size=8)
    assert steps_line(unknown) == "an unknown number (the data is not here) per epoch of 8 examples each"
