"""The head of a language model, where the head is a frozen module of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

_plain_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def head_of(model: nn.Module) -> nn.Module | None:
    """The frozen module that alone turns the last hidden state into logits; None if the model has none.

    Some models scale or cap their logits after the head. No list of names decides: on the first call, a forward pass
    over two tokens must give the same logits with and without the model's own last steps.
    """
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder or model.base_model is model:
        return None
    head = cast(Any, model).get_output_embeddings()
    # A trained head needs gradients of its weight, which the chunked loss does not form.
    if not isinstance(head, nn.Module) or any(p.requires_grad for p in head.parameters()):
        return None
    if model not in _plain_heads:
        _plain_heads[model] = _is_plain(model, head)
    return head if _plain_heads[model] else None


@torch.no_grad()
def _is_plain(model: PreTrainedModel, head: nn.Module) -> bool:
    base: nn.Module = model.base_model
    ids = torch.tensor([[0, 1]], device=model.device)
    with _evaluating(model):
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.equal(head(base(input_ids=ids, use_cache=False)[0]), logits)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context, for every module; the modes of before come back at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
