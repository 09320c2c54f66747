"""Checkpointed layers, with transformers' names for them of before and after 5.23."""

import warnings
from typing import Any

import torch
from torch import nn

from bishare.adapters.bishare import BiShareConfig
from bishare.models.activation_checkpointing import checkpoint_layers, runs_again
from bishare.models.attach import attach


class OfAnOlderRelease(nn.Module):
    asked: Any = None

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        self.asked = options


def test_layers_run_again_in_backward_alone(tiny_model) -> None:
    model = tiny_model("llama").train()
    assert not runs_again(model)
    checkpoint_layers(model)
    assert runs_again(model)
    with torch.no_grad():
        assert not runs_again(model)


def test_older_release_is_asked_by_its_name() -> None:
    model = OfAnOlderRelease()
    checkpoint_layers(model)  # type: ignore[arg-type]
    assert model.asked == {"use_reentrant": False}


def test_nothing_outdated_is_asked_of_transformers(tiny_model) -> None:
    model = tiny_model("llama").train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        attach(model, BiShareConfig(size=16))
        model(torch.arange(6)[None])
        checkpoint_layers(model)
        model(torch.arange(6)[None])
