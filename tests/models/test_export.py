"""Exports of every method, opened with stock PEFT and transformers, are the same function."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.factors import Factors, Slot
from bishare.adapters.lora import LoRA, LoRAConfig
from bishare.models.attach import NAME, attach, merge_and_remove
from bishare.models.export import export_rank, vllm_rank, write_peft
from tests.adapters.configurations import ARCHITECTURES, CONFIGS
from tests.randomised import randomise

ModelFactory = Callable[..., PreTrainedModel]


def logits(model: Any, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids).logits


def assert_same(mine: Tensor, theirs: Tensor, base: Tensor, tolerance: float) -> None:
    assert (mine - base).abs().max() > 1e-2
    assert (mine - theirs).abs().max() < tolerance * mine.abs().max()
    assert torch.equal(mine.argmax(-1), theirs.argmax(-1))


def tie_some(adapter: Adapter) -> None:
    for group in adapter.mergeable_groups().values():
        group.tie(group.live[0], group.live[1])


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_exports_are_the_adapter(
    architecture: str, method: str, tiny_model: ModelFactory, token_ids: Tensor, tmp_path: Path
) -> None:
    base, native = logits(tiny_model(architecture), token_ids), tiny_model(architecture)
    adapter = attach(native, CONFIGS[method]())
    randomise(adapter)
    tie_some(adapter)
    mine = logits(native, token_ids)

    write_peft(native, tmp_path, base="tiny")

    reopened = PeftModel.from_pretrained(tiny_model(architecture), tmp_path)
    assert_same(mine, logits(reopened, token_ids), base, 1e-5)
    merge_and_remove(native)
    assert_same(mine, logits(native, token_ids), base, 1e-5)


class Uneven(LoRA):
    """A LoRA of rank 3 of which some weights use one or two rows only."""

    blocks = Adapter.blocks

    def parts(self, slot: Slot) -> Mapping[str, Factors]:
        A, B = super().parts(slot)["local"]
        rank = 1 + self.slots.index(slot) % 3
        return {"local": Factors(A[:rank], B[:, :rank])}


class UnevenConfig(LoRAConfig):
    def build(self, slots: Any) -> Uneven:
        return Uneven(self, slots)


def test_patterns_tell_ranks_apart(tiny_model: ModelFactory, token_ids: Tensor, tmp_path: Path) -> None:
    base, native = logits(tiny_model("llama"), token_ids), tiny_model("llama")
    adapter = attach(native, UnevenConfig(r=3, targets=["q", "v"]))
    randomise(adapter)
    assert export_rank(adapter) == 3

    write_peft(native, tmp_path, base="tiny")

    reopened = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert_same(logits(native, token_ids), logits(reopened, token_ids), base, 1e-5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [1, 1, 2, 2]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (1, 32)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LoRAConfig(targets=["q", "down"]), ["down_proj", "q_proj"]),
        (LoRAConfig(targets=["q"], layers=[1]), ["model.layers.1.self_attn.q_proj"]),
    ],
    ids=["all layers", "one layer"],
)
def test_exactly_the_adapted_weights_are_named(
    config: AdapterConfig, expected: list[str], tiny_model: ModelFactory, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    randomise(attach(model, config))

    write_peft(model, tmp_path, base="tiny")

    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == expected
    reopened = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    adapted = {name for name, module in reopened.named_modules() if hasattr(module, "lora_A")}
    assert {name.removeprefix("base_model.model.") for name in adapted} == {
        slot.name for slot in getattr(model, NAME).slots
    }


def test_merging_leaves_a_plain_model(tiny_model: ModelFactory) -> None:
    plain, model = tiny_model("llama"), tiny_model("llama")
    randomise(attach(model, BiShareConfig(size=12)))

    merge_and_remove(model)

    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert list(model.state_dict()) == list(plain.state_dict())


def test_vllm_slot_is_the_smallest_that_fits() -> None:
    assert [vllm_rank(rank) for rank in (1, 2, 8, 22, 256, 257, 400, 512, 513)] == [
        1,
        8,
        8,
        32,
        256,
        320,
        512,
        512,
        None,
    ]
