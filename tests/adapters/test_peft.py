"""Where PEFT has a method too, the same values in PEFT give the same logits."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.base import Adapter
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.models.attach import attach
from tests.randomised import randomise

ModelFactory = Callable[..., PreTrainedModel]
LLAMA = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def logits(model: Any, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def assert_same(mine: Tensor, theirs: Tensor, base: Tensor) -> None:
    assert (mine - base).abs().max() > 1e-2
    assert (mine - theirs).abs().max() < 1e-5 * mine.abs().max()


def modules(adapter: Adapter, model: Any) -> list[tuple[str, Any]]:
    return [(slot.key, model.base_model.model.get_submodule(slot.name)) for slot in adapter.slots]


@pytest.mark.parametrize("scaling", ["alpha/r", "rslora"])
def test_lora(tiny_model: ModelFactory, token_ids: Tensor, scaling: str) -> None:
    base, native = logits(tiny_model("llama"), token_ids), tiny_model("llama")
    adapter = attach(native, LoRAConfig(r=4, alpha=8.0, scaling=scaling))
    randomise(adapter)
    config = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=scaling == "rslora", target_modules=LLAMA)
    model = peft.get_peft_model(tiny_model("llama"), config)
    with torch.no_grad():
        for key, module in modules(adapter, model):
            module.lora_A["default"].weight.copy_(adapter.local.A[key])
            module.lora_B["default"].weight.copy_(adapter.local.B[key])

    assert_same(logits(native, token_ids), logits(model.eval(), token_ids), base)


def test_vera_with_the_same_seed(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    base, native = logits(tiny_model("llama"), token_ids), tiny_model("llama")
    adapter = attach(native, VeRAConfig(r=12, seed=11))
    randomise(adapter)
    config = peft.VeraConfig(r=12, projection_prng_key=11, target_modules=LLAMA)
    model = peft.get_peft_model(tiny_model("llama"), config)
    with torch.no_grad():
        for key, module in modules(adapter, model):
            module.vera_lambda_d["default"].copy_(adapter.d[key])
            module.vera_lambda_b["default"].copy_(adapter.b[key])

    assert_same(logits(native, token_ids), logits(model.eval(), token_ids), base)


def test_vblora(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    base, native = logits(tiny_model("llama"), token_ids), tiny_model("llama")
    adapter = attach(native, VBLoRAConfig(r=3, num_vectors=10, vector_length=8, top_k=2))
    randomise(adapter)
    config = peft.VBLoRAConfig(r=3, num_vectors=10, vector_length=8, topk=2, target_modules=LLAMA)
    model = peft.get_peft_model(tiny_model("llama"), config)
    with torch.no_grad():
        model.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
        for key, module in modules(adapter, model):
            module.vblora_logits_A["default"].copy_(adapter.logits_A[key])
            module.vblora_logits_B["default"].copy_(adapter.logits_B[key])

    assert_same(logits(native, token_ids), logits(model.eval(), token_ids), base)
