"""The architecture of a base from a local folder, a file beside the configuration, or the files that are shipped."""

import json
from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig

from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.architectures import build_adapter, build_on_meta, find_architecture

LLAMA = "huggyllama/llama-7b"
TINY = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def write_architecture(file: Path, num_layers: int) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(find_architecture(LLAMA).to_dict() | {"num_hidden_layers": num_layers}))
    return file


@pytest.mark.parametrize(
    ("base", "values"),
    [
        (LLAMA, 6_738_415_616),
        ("huggyllama/llama-13b", 13_015_864_320),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
    ],
)
def test_shipped_architectures_have_published_sizes(base: str, values: int) -> None:
    model = build_on_meta(find_architecture(base))
    assert sum(parameter.numel() for parameter in model.parameters()) == values


def test_given_file_wins(tmp_path: Path) -> None:
    given = write_architecture(tmp_path / "mine.json", 2)
    assert find_architecture(LLAMA, given=str(given)).num_hidden_layers == 2


def test_local_base_needs_no_given_file(tmp_path: Path) -> None:
    write_architecture(tmp_path / "config.json", 4)
    assert find_architecture(str(tmp_path)).num_hidden_layers == 4


def test_file_beside_configuration_wins_over_shipped(tmp_path: Path) -> None:
    write_architecture(tmp_path / "base" / "huggyllama--llama-7b.json", 3)
    assert find_architecture(LLAMA, files=[tmp_path / "mine.yaml"]).num_hidden_layers == 3
    assert find_architecture(LLAMA).num_hidden_layers == 32


def test_unknown_base_is_explained_without_download() -> None:
    with pytest.raises(UserError, match=r"--architecture.*base/nobody--nothing.json.*hf download nobody/nothing"):
        find_architecture("nobody/nothing")


def test_broken_architecture_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "config.json"
    broken.write_text('{"model_type": "no_such_model"}')
    with pytest.raises(UserError, match=r"config\.json is no config.json of a model that transformers knows"):
        find_architecture(LLAMA, given=str(broken))


def test_model_on_meta_has_tied_head() -> None:
    tied = build_on_meta(LlamaConfig(**{**TINY.to_dict(), "tie_word_embeddings": True}))
    apart = build_on_meta(TINY)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (apart, tied)]
    assert sizes[0] - sizes[1] == 64 * 32
    assert {parameter.device.type for parameter in tied.parameters()} == {"meta"}


def test_classifier_is_built_for_classes() -> None:
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4)
    model = build_on_meta(config, num_classes=3)
    assert model.classifier.weight.shape == (3, 32)


def test_adapter_on_meta_has_no_values() -> None:
    adapter = build_adapter(build_on_meta(TINY), LoRAConfig(r=2, targets=["q"]))
    assert adapter.num_parameters() == 3 * 2 * (32 + 32)
    assert {parameter.device.type for parameter in adapter.parameters()} == {"meta"}
