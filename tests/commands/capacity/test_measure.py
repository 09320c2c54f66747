"""Counted bytes follow the parameters, and the paper's numbers come out."""

from pathlib import Path

import pytest
import torch

from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import read_adapter, save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.commands.capacity import measure, process_memory
from bishare.models.architectures import build_adapter, build_on_meta
from bishare.models.targets import find_slots
from bishare.serving.compact_adapter import Layout
from tests.commands.capacity.tiny import tiny_config
from tests.randomised import randomise


def capacity_of(config: AdapterConfig, **sizes: int) -> measure.Capacity:
    model = build_on_meta(tiny_config(**sizes))
    return measure.capacity_of("any", build_adapter(model, config), find_slots(model, config), value_bytes=2)


@pytest.fixture(autouse=True)
def _few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COUNTS", (50, 100))


def test_held_bytes_are_the_counted_ones() -> None:
    found = capacity_of(BiShareConfig(transform="slice"), hidden_size=512, intermediate_size=1024)
    assert found.own == 4 * found.num_values
    if process_memory.resident_bytes():
        grown = found.held[100] - found.held[50]
        assert abs(grown - 50 * found.own) < 0.1 * 50 * found.own


def test_random_pair_of_vera_counts_once() -> None:
    found = capacity_of(VeRAConfig(r=16))
    assert found.once == 4 * 16 * (56 + 56)
    assert found.memory(10) == found.once + 10 * found.own


def test_rank_beyond_vllm_has_no_slot() -> None:
    found = capacity_of(LoRAConfig(r=600))
    assert (found.rank, found.slot_rank, found.slot) == (600, None, None)


def test_published_counts_fit_their_budgets() -> None:
    for size, count in measure.PUBLISHED.values():
        budget = measure.PUBLISHED_BASE + size * count
        assert measure.fitting(round(budget), round(measure.PUBLISHED_BASE), round(size)) == count
    lora_on_llama_7b = 14_024_704
    assert measure.PUBLISHED["LoRA r=8"][0] == 4 * lora_on_llama_7b


def test_switch_gives_the_adapters_factors(tmp_path: Path) -> None:
    config = BiShareConfig(size=8)
    adapter = config.build(find_slots(build_on_meta(tiny_config()), config))
    randomise(adapter)
    save_adapter(adapter, tmp_path)
    compact = Layout(config, adapter.slots, torch.device("cpu")).read(read_adapter(tmp_path), where="here")
    factors = measure.switch(compact, 4)
    slot = adapter.slots[0]
    x = torch.randn(1, 5, slot.in_features)
    A, B = adapter.factors(slot)
    update = factors.add_update(slot.name, x, torch.zeros(1, 5, slot.out_features))
    assert torch.allclose(update, x @ A.T @ B.T, atol=1e-5)
