"""Runs ``worker.py`` in two processes on the CPU."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity.worker import VOCABULARY, train_all
from tests.processes import Group


def tiny_base(folder: Path, *, num_layers: int = 4) -> str:
    """A Llama whose weights are larger than any adapter tensor, so that ZeRO-3 partitions them."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + (parameter.dim() == 1))
    model.save_pretrained(folder)
    return str(folder)


def start(runs: list[dict[str, Any]], folder: Path) -> Group:
    """Two processes that do one run after another."""
    return Group(train_all, runs, folder=folder)


def launch(runs: list[dict[str, Any]], folder: Path, *, seconds: float) -> list[dict[str, Any]]:
    """What rank zero recorded of each run; the processes are killed after ``seconds``."""
    records: list[dict[str, Any]] = start(runs, folder).results(seconds)[0]
    return records
