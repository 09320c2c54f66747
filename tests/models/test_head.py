"""The head of a language model, where it alone makes the logits."""

import torch
from transformers import Gemma2Config, GraniteConfig, LlamaModel
from transformers.models.gemma2 import Gemma2ForCausalLM
from transformers.models.granite import GraniteForCausalLM

from bishare.data.packing import pack, unpack
from bishare.models.head import head_of
from bishare.training.loss import token_loss
from tests.packs import ModelFactory, adapted, documents, reference


def test_models_that_change_logits_have_none() -> None:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=0.5)).requires_grad_(False)
    scaled = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)).requires_grad_(False)
    for model in (capped, scaled):
        assert head_of(model) is None
        batch = unpack(pack(*documents()))
        torch.testing.assert_close(token_loss(model, batch).sum, reference(model, batch), rtol=1e-5, atol=0)


def test_modes_stay_as_they_were(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, "llama")
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    assert head_of(model) is not None
    assert [module.training for module in model.modules()] == before


def test_head_is_found_once(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama").requires_grad_(False)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert head_of(model) is head_of(model) is model.lm_head
    assert len(calls) == 1


def test_trainable_head_is_left_to_the_model(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert head_of(model) is None


def test_model_without_head_has_none(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama")
    assert isinstance(model.model, LlamaModel)
    assert head_of(model.model) is None
    assert head_of(model.model.layers) is None
