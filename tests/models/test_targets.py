from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.targets import find_slots

LLAMA_LIKE = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
BERT_LIKE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "up": "intermediate.dense",
    "down": "output.dense",
}
# Where the layers stand, and the path of each weight that the default targets find in a layer.
FOUND = {
    "llama": ("model.layers", LLAMA_LIKE),
    "qwen2": ("model.layers", LLAMA_LIKE),
    "mistral": ("model.layers", LLAMA_LIKE),
    "gpt2": ("transformer.h", {"qkv": "attn.c_attn", "up": "mlp.c_fc", "down": "mlp.c_proj"}),
    "gpt_neox": (
        "gpt_neox.layers",
        {"qkv": "attention.query_key_value", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    ),
    "bert": ("bert.encoder.layer", BERT_LIKE),
    "roberta": ("roberta.encoder.layer", BERT_LIKE),
}
ModelFactory = Callable[..., PreTrainedModel]


class Blocks(nn.Module):
    """A model of two layers whose weights have the given names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({name: nn.Linear(4, 4) for name in names}) for _ in range(2))


def names(model: nn.Module, *targets: str, layers: list[int] | None = None) -> list[str]:
    return [slot.name for slot in find_slots(model, LoRAConfig(targets=list(targets), layers=layers))]


@pytest.mark.parametrize("architecture", FOUND)
def test_default_targets_match_every_family(architecture: str, tiny_model: ModelFactory) -> None:
    prefix, paths = FOUND[architecture]
    model = tiny_model(architecture)

    slots = find_slots(model, LoRAConfig())

    assert sorted((s.layer, s.kind, s.name) for s in slots) == sorted(
        (layer, kind, f"{prefix}.{layer}.{path}") for layer in range(3) for kind, path in paths.items()
    )
    assert [s.name for s in slots] == [n for n, _ in model.named_modules() if n in {s.name for s in slots}]
    for slot in slots:
        weight = model.get_submodule(slot.name).weight
        matrix = weight.T if architecture == "gpt2" else weight
        assert matrix.shape == (slot.out_features, slot.in_features)


def test_slots_are_found_on_meta_device(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama")
    expected = find_slots(model, LoRAConfig())

    assert find_slots(model.to("meta"), LoRAConfig()) == expected


def test_fused_weight_counts_once(tiny_model: ModelFactory) -> None:
    model = tiny_model("gpt2")

    for targets in (["q"], ["v"], ["q", "k", "v"], ["qkv"], ["c_attn"], ["k", "attn.c_attn"]):
        assert names(model, *targets) == [f"transformer.h.{layer}.attn.c_attn" for layer in range(3)]


def test_decoder_layers_count_on_from_the_encoder() -> None:
    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=4)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)

    slots = find_slots(model, LoRAConfig(targets=["q", "k", "v", "wi"]))

    layer_of = {slot.name: slot.layer for slot in slots}
    for block in range(2):
        assert layer_of[f"encoder.block.{block}.layer.0.SelfAttention.q"] == block
        assert layer_of[f"encoder.block.{block}.layer.1.DenseReluDense.wi"] == block
    for block in range(3):
        assert layer_of[f"decoder.block.{block}.layer.0.SelfAttention.q"] == 2 + block
        assert layer_of[f"decoder.block.{block}.layer.1.EncDecAttention.q"] == 2 + block
    assert len(slots) == 2 * 4 + 3 * 7
    assert len({slot.key for slot in slots}) == len(slots)


def test_name_matches_by_components(tiny_model: ModelFactory) -> None:
    model = Blocks("q", "xq", "q_norm", "xq_proj")

    assert names(model, "q") == ["blocks.0.q", "blocks.1.q"]
    assert names(model, "xq") == ["blocks.0.xq", "blocks.1.xq"]
    assert names(tiny_model("gpt2"), "mlp.c_proj") == [f"transformer.h.{layer}.mlp.c_proj" for layer in range(3)]
    assert len(names(tiny_model("gpt2"), "c_proj")) == 6
    with pytest.raises(UserError):
        names(tiny_model("gpt2"), "lp.c_proj")


def test_pattern_must_match_the_whole_name(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama")

    assert names(model, r"re:.*layers\.[02]\..*\.[qk]_proj") == [
        f"model.layers.{layer}.self_attn.{kind}_proj" for layer in (0, 2) for kind in ("q", "k")
    ]
    with pytest.raises(UserError):
        names(model, "re:q_proj")


def test_weight_named_twice_is_found_once(tiny_model: ModelFactory) -> None:
    assert names(tiny_model("llama"), "q", "q_proj", r"re:.*q_proj") == names(tiny_model("llama"), "q")


def test_chosen_layers_keep_their_index(tiny_model: ModelFactory) -> None:
    slots = find_slots(tiny_model("bert"), LoRAConfig(targets=["q", "v"], layers=[0, 2]))

    assert [(slot.layer, slot.kind) for slot in slots] == [(0, "q"), (0, "v"), (2, "q"), (2, "v")]


@pytest.mark.parametrize("targets", [["nope"], ["q", "nope"], ["q", "re:.*nope"], ["q", "o_projection"]])
def test_unmatched_target_is_named_beside_candidates(targets: list[str], tiny_model: ModelFactory) -> None:
    with pytest.raises(UserError) as error:
        names(tiny_model("llama"), *targets)

    message = str(error.value)
    assert targets[-1] in message
    assert all(kind in message for kind in ("q", "k", "v", "o", "gate", "up", "down"))
    assert "\n" not in message


def test_layer_beyond_the_last_is_refused(tiny_model: ModelFactory) -> None:
    with pytest.raises(UserError, match=r"3.*0 to 2"):
        names(tiny_model("llama"), "q", layers=[1, 3])


def test_a_broken_pattern_is_refused(tiny_model: ModelFactory) -> None:
    with pytest.raises(UserError, match="regular expression"):
        names(tiny_model("llama"), "re:(q")


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="Linear"):
        names(nn.Linear(2, 2), "q")


def test_weight_of_another_type_is_refused(tiny_model: ModelFactory) -> None:
    class Quantised(nn.Linear):
        pass

    model = tiny_model("llama")
    model.model.layers[1].self_attn.q_proj = Quantised(32, 32)

    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj is a Quantised"):
        names(model, "q")
