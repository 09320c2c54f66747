"""An adapter in its own form: one buffer of live values, assembled together with others of its configuration."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import read_adapter, save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.errors import UserError
from bishare.models.attach import attach
from bishare.serving.compact_adapter import CompactAdapter, Layout, compact_bytes
from tests.randomised import randomise

MERGEABLE = ASLoRAConfig(r=2, targets=["q", "up"])


def save(model: PreTrainedModel, config: AdapterConfig, folder: Path, *, merged: bool = False) -> Adapter:
    adapter = attach(model, config)
    randomise(adapter)
    if merged:
        for group in adapter.mergeable_groups().values():
            group.tie(0, 2)
    save_adapter(adapter, folder)
    return adapter


def read(folder: Path, layout: Layout | None = None) -> CompactAdapter:
    file = read_adapter(folder)
    layout = layout or Layout(file.config, file.slots, torch.device("cpu"))
    return layout.read(file, where=str(folder))


def test_only_live_values_are_held(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    adapter = save(tiny_model("llama"), MERGEABLE, tmp_path, merged=True)
    compact = read(tmp_path)
    live = sum(p.numel() for p in adapter.live_parameters().values())
    everything = sum(p.numel() for p in adapter.parameters())
    assert len(compact.values) == live < everything
    assert compact.layout.num_bytes == 4 * everything
    assert compact_bytes(read_adapter(tmp_path)) >= compact.values.nbytes


def test_several_adapters_are_held_at_once(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    config = BiShareConfig(size=8, targets=["q", "up"])
    adapter = save(tiny_model("llama"), config, tmp_path)
    compact = read(tmp_path)
    values = compact.layout.empty(2)
    compact.write_to(values[0])
    values[1] = 3 * values[0]
    with compact.layout.views_of(values, compact.owners) as held:
        for name, parameter in held.named_parameters():
            wanted = adapter.get_parameter(name)
            assert torch.equal(parameter[0], wanted)
            assert torch.equal(parameter[1], 3 * wanted)
        shapes = {parameter.shape[0] for parameter in held.parameters()}
    assert shapes == {2}
    assert next(held.parameters()).shape == next(adapter.parameters()).shape


def test_form_is_layout_and_owners(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    save(tiny_model("llama"), MERGEABLE, tmp_path / "apart")
    save(tiny_model("llama"), MERGEABLE, tmp_path / "merged", merged=True)
    apart = read(tmp_path / "apart")
    merged = read(tmp_path / "merged", apart.layout)
    assert apart.assembly_key == read(tmp_path / "apart", apart.layout).assembly_key
    assert apart.assembly_key != merged.assembly_key
    assert apart.assembly_key != read(tmp_path / "apart").assembly_key


def test_owners_hold_while_values_are_held(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    save(tiny_model("llama"), MERGEABLE, tmp_path, merged=True)
    merged = read(tmp_path)
    with merged.layout.views_of(merged.layout.empty(1), merged.owners) as held:
        for name, group in held.mergeable_groups().items():
            assert torch.equal(group.owner, merged.owners[name])
            assert group.live == [1, 2]


def test_frozen_pair_counts_by_its_scales(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    save(tiny_model("llama"), VeRAConfig(r=4, targets=["q"]), tmp_path / "vera")
    save(tiny_model("llama"), LoRAConfig(r=4, targets=["q"]), tmp_path / "lora")
    vera, lora = read(tmp_path / "vera").layout, read(tmp_path / "lora").layout
    assert (vera.ranks, vera.num_scales) == ({}, 3 * (4 + 32))
    assert (set(lora.ranks.values()), lora.num_scales) == ({4}, 0)


def test_layout_leaves_random_numbers_alone(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    save(tiny_model("llama"), LoRAConfig(r=2), tmp_path)
    before = torch.get_rng_state()
    read(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_file_of_other_tensors_is_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    save(tiny_model("llama"), LoRAConfig(r=2), tmp_path / "two")
    save(tiny_model("llama"), LoRAConfig(r=3), tmp_path / "three")
    with pytest.raises(UserError, match="three"):
        read(tmp_path / "three", read(tmp_path / "two").layout)
