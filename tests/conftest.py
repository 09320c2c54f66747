"""Tiny models with random weights, built from their configs: no hub, no files."""

import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import docstring_parser
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
)

# Tiny models gain nothing from threads, and two test runs on one machine would wait for each other's. The variable
# is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# DeepSpeed builds its operator once and keeps it here. The usual folder is the user's: environments that share it build
# in turns, each the operator of its own torch, and a build waits for another's lock.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

# Each run of a command in a test's process builds the parser anew; the docstrings that it reads stay the same.
docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)

VOCABULARY = 64
NUM_LAYERS = 3

_LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_BERT_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def _tiny_config(architecture: str) -> PretrainedConfig:
    match architecture:
        case "llama":
            return LlamaConfig(**_LLAMA_LIKE)
        case "mistral":
            return MistralConfig(**_LLAMA_LIKE)
        case "qwen2":
            return Qwen2Config(**_LLAMA_LIKE)
        case "gpt2":
            return GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_inner=56,
                n_layer=NUM_LAYERS,
                n_head=4,
                n_positions=64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=2,
            )
        case "gpt_neox":
            sizes = {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}
            return GPTNeoXConfig(**sizes, bos_token_id=1, eos_token_id=2)
        case "bert":
            return BertConfig(**_BERT_LIKE)
        case "roberta":
            return RobertaConfig(**_BERT_LIKE)
    raise AssertionError(architecture)


def pytest_collection_finish() -> None:
    """Leave modules out of every later garbage collection: each took half a second, and freed none of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Restore the environment and Lightning's log levels: commands set them for a process that ends with them."""
    environment = dict(os.environ)
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    os.environ.clear()
    os.environ.update(environment)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """A function from an architecture's name to a fresh model in eval mode, the same weights for the same seed.

    Weights are drawn with standard deviation 0.1 (biases and norms too), so that no part of a test is vacuous.
    """

    def build(architecture: str, *, seed: int = 0) -> PreTrainedModel:
        config = _tiny_config(architecture)
        model_class = AutoModelForMaskedLM if architecture in ("bert", "roberta") else AutoModelForCausalLM
        model = model_class.from_config(config, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                is_norm = "norm" in name.lower() or ".ln_" in name
                mean = 1.0 if is_norm and name.endswith("weight") else 0.0
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + mean)
        return model.eval()

    return build


@pytest.fixture
def token_ids() -> torch.Tensor:
    """Random tokens [2, 10], none of them a special one."""
    return torch.randint(3, VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(1))
