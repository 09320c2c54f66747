"""Which modules are a classifier's head, and that they are trained in fp32 beside frozen weights of another type."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, LlamaConfig, RobertaConfig

from bishare.adapters.lora import LoRAConfig
from bishare.models.attach import attach
from bishare.models.classifier import head_modules, head_parameters, train_head

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
CONFIGS = {
    "bert": (BertConfig(**SIZES), {"bert.pooler", "classifier"}),
    "roberta": (RobertaConfig(**SIZES), {"classifier"}),
    "distilbert": (
        DistilBertConfig(vocab_size=32, dim=16, hidden_dim=24, n_layers=2, n_heads=2),
        {"pre_classifier", "classifier"},
    ),
    "llama": (LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0), {"score"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_head_lies_outside_encoder_and_pooler(name: str) -> None:
    config, modules = CONFIGS[name]
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    assert set(head_modules(model)) == modules
    attach(model, LoRAConfig(r=2, targets=["q", "v"]))
    assert set(head_modules(model)) == modules, "the adapter is no head"


@pytest.mark.parametrize("name", CONFIGS)
def test_half_precision_base_has_an_fp32_head(name: str) -> None:
    config, _ = CONFIGS[name]
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
    adapter = attach(model, LoRAConfig(r=2, targets=["q", "v"]))
    train_head(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {*head_parameters(model), *(f"bishare.{n}" for n, _ in adapter.named_parameters())}
    logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    logits.sum().backward()
    for name, parameter in head_parameters(model).items():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
