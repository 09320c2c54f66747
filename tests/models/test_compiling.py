"""Compiling reaches normalisation layers and nothing else."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from bishare.errors import UserError
from bishare.models.compiling import check_compiler, compile_norms


def is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None


def test_every_norm_is_compiled_in_place(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    names = list(model.state_dict())
    compile_norms(model)
    compiled = {name for name, module in model.named_modules() if is_compiled(module)}
    assert compiled == {name for name, _ in model.named_modules() if name.endswith("norm")}
    assert len(compiled) == 3 * 2 + 1
    assert list(model.state_dict()) == names


def test_weights_and_activations_are_not_compiled() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Embedding(4, 4), nn.LayerNorm(4))
    compile_norms(model)
    assert [is_compiled(module) for module in model] == [False, False, False, True]


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler my-compiler; install it, or set CXX"):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))  # torch brings its own
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check_compiler(torch.device("cpu"))
