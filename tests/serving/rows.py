"""Rows of tokens, and the answers of a model with a single adapter."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bishare.models.attach import load_adapter, remove

MIB = 1 << 20


def ids(rows: int, length: int = 9) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def alone(model: PreTrainedModel, folder: Path | None, tokens: Tensor) -> Tensor:
    """Logits of a model that carries this one adapter."""
    if folder is None:
        return model(input_ids=tokens).logits
    load_adapter(model, folder)
    logits = model(input_ids=tokens).logits
    remove(model)
    return logits


@torch.no_grad()
def greedy(model: PreTrainedModel, folder: Path | None, prompt: Tensor, num_tokens: int) -> Tensor:
    """Greedy answer to one prompt [n], without a cache and without padding."""
    tokens = prompt[None]
    for _ in range(num_tokens):
        tokens = torch.cat([tokens, alone(model, folder, tokens)[:, -1:].argmax(-1)], 1)
    return tokens[0, len(prompt) :]
