"""The plan of a batch follows from the adapters of its rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bishare.adapters.checkpoint import read_adapter
from bishare.serving import batch_plan
from bishare.serving.batch_plan import BatchPlan, Entry, Loader, plan_batch
from bishare.serving.compact_adapter import CompactAdapter, Layout


@pytest.fixture
def entries(adapter_folders: dict[str, Path]) -> dict[str, Entry]:
    """Two adapters of LoRA with the same ranks, an adapter of another rank, and VeRA."""
    names = {"ann": "lora", "bob": "lora", "wide": "lora of another rank", "vera": "vera"}
    return {name: Entry(name, adapter_folders[folder], number) for number, (name, folder) in enumerate(names.items())}


@pytest.fixture
def loaded() -> Loader:
    layouts: dict[str, Layout] = {}

    @contextmanager
    def load(entry: Entry) -> Iterator[CompactAdapter]:
        file = read_adapter(entry.folder)
        layout = layouts.setdefault(str(file.config), Layout(file.config, file.slots, torch.device("cpu")))
        yield layout.read(file, where=entry.name)

    return load


def test_single_adapter_is_stored_once(entries: dict[str, Entry], loaded: Loader) -> None:
    plan = plan_batch([entries["ann"]] * 3, loaded)
    assert plan.shared
    assert plan.rows == {entries["ann"]: [0, 1, 2]}
    (shape,) = next(iter(plan.shapes.values()))
    assert shape.ranks == {0: 2}


def test_row_of_base_model_is_left_out(entries: dict[str, Entry], loaded: Loader) -> None:
    plan = plan_batch([entries["ann"], None, entries["ann"]], loaded)
    assert not plan.shared
    assert plan.num_rows == 3
    assert plan.rows == {entries["ann"]: [0, 2]}


def test_equal_configurations_are_assembled_together(entries: dict[str, Entry], loaded: Loader) -> None:
    plan = plan_batch([entries["ann"], entries["wide"], entries["bob"]], loaded)
    assert sorted(map(len, plan.groups.values())) == [1, 2]
    stages = [{entry.name: list(rows) for entry, rows in members.items()} for _, members in plan.stages()]
    assert stages == [{"ann": [0], "bob": [2]}, {"wide": [1]}]


def test_large_adapters_are_assembled_apart(
    entries: dict[str, Entry], loaded: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_plan, "STAGED_BYTES", 1)
    plan = plan_batch([entries["ann"], entries["bob"]], loaded)
    assert [list(members.values()) for _, members in plan.stages()] == [[[0]], [[1]]]


def test_bytes_are_those_of_stacks_and_scales(entries: dict[str, Entry], loaded: Loader) -> None:
    lora = plan_batch([entries["ann"], entries["bob"]], loaded)
    values = sum(shape.num_values for shapes in lora.shapes.values() for shape in shapes)
    assert lora.num_bytes(2) == 2 * values > 0
    vera = plan_batch([entries["vera"]] * 2, loaded)
    (layout,) = (layout for layout, _ in vera.groups)
    assert vera.shapes == {}
    assert vera.num_bytes(2) == 4 * 2 * layout.num_scales > 0


def test_plan_of_base_model_is_empty(loaded: Loader) -> None:
    plan = plan_batch([None, None], loaded)
    assert plan == BatchPlan(num_rows=2, rows={}, shared=False, groups={}, shapes={})
    assert plan.num_bytes(4) == 0
