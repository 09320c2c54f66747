"""Adapter files with a damaged owner map are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.errors import UserError
from bishare.models.attach import attach, load_adapter


def overwrite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Put other tensors into an adapter file and leave its header as it is."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(path) | tensors, path, metadata=header)


@pytest.mark.parametrize("owners", [[2, 2, 1], [0, 0, 2], [0, 1, 3], [-1, 1, 2], [1, 2, 2]])
def test_damaged_owner_map_leaves_the_model_alone(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, owners: list[int]
) -> None:
    adapter = attach(tiny_model("llama"), ASLoRAConfig(r=3))
    save_adapter(adapter, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    overwrite(path, {"mergeable.local-q.owner": torch.tensor(owners)})
    pristine = tiny_model("llama")

    with pytest.raises(UserError, match=r"local\.q: .* no owner map"):
        load_adapter(pristine, tmp_path)

    assert not hasattr(pristine, "bishare")


def test_file_without_a_live_tensor_is_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    adapter = attach(tiny_model("llama"), ASLoRAConfig(r=3))
    adapter.mergeable_groups()["local.q"].tie(0, 2)
    save_adapter(adapter, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    overwrite(path, {"mergeable.local-q.owner": torch.arange(3)})

    with pytest.raises(UserError, match=r"lacks 'local\.B\.0-q'"):
        load_adapter(tiny_model("llama"), tmp_path)
