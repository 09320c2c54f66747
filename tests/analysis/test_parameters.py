"""Counts by part, beside LoRA and the base model."""

import torch
from torch import nn

from bishare.adapters.base import Adapter
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRA, LoRAConfig
from bishare.analysis.parameters import count_parameters, num_lora_values

SLOTS = [
    Slot(name=f"layers.{layer}.{kind}", layer=layer, kind=kind, in_features=n, out_features=m)
    for layer in range(2)
    for kind, n, m in [("q", 16, 16), ("k", 16, 8), ("down", 32, 16)]
]


def base_model() -> nn.Module:
    """An embedding, a head tied to it, and a Linear: 10 · 16 + 16 · 4 + 4 values."""
    model = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 10, bias=False), nn.Linear(16, 4))
    model[1].weight = model[0].weight
    return model


def test_every_value_is_counted_in_its_part() -> None:
    adapter = LoRAConfig(r=3).build(SLOTS)
    report = count_parameters(adapter, base_model())
    assert report.live == {"local.A": 3 * 2 * (16 + 16 + 32), "local.B": 3 * 2 * (16 + 8 + 16)}
    assert report.dead == {"local.A": 0, "local.B": 0}
    assert report.num_live == adapter.num_parameters()


def test_dead_values_are_counted_apart() -> None:
    adapter = LoRAConfig(r=3).build(SLOTS)
    assert isinstance(adapter, LoRA)
    live = dict(adapter.live_parameters())
    (dead,) = (name for name, p in live.items() if p is adapter.local.B["0-down"])
    del live[dead]
    adapter.live_parameters = lambda: live  # type: ignore[method-assign]  # what a merge does to one layer
    report = count_parameters(adapter, base_model())
    assert report.dead == {"local.A": 0, "local.B": 3 * 16}
    assert report.num_live == 3 * 2 * (16 + 16 + 32) + 3 * 2 * (16 + 8 + 16) - 3 * 16


def test_lora_of_rank_8_measures_itself() -> None:
    adapter = LoRAConfig(r=8).build(SLOTS)
    report = count_parameters(adapter, base_model())
    assert report.lora == num_lora_values(SLOTS) == 8 * 2 * (32 + 24 + 48)
    assert report.fraction_of_lora == 1.0


def test_base_counts_ties_once_and_no_adapter() -> None:
    base = base_model()
    adapter = LoRAConfig(r=1).build(SLOTS)
    alone = count_parameters(adapter, base)
    base.bishare = adapter
    inside = count_parameters(adapter, base)
    assert alone.base == inside.base == 10 * 16 + 16 * 4 + 4
    assert inside.fraction_of_base == adapter.num_parameters() / 228


def test_counting_needs_no_values() -> None:
    with torch.device("meta"):
        adapter: Adapter = BiShareConfig(transform="kronecker", size=8, r_local=1, r_intra=2, r_inter=3).build(SLOTS)
        report = count_parameters(adapter, base_model())
    assert report.num_live == adapter.num_parameters()
    assert report.live["inter.A"] == 3 * 8
    assert set(report.live) == set(adapter.groups())
