"""Adapters of every method for one tiny model, in folders, each with values of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.base import AdapterConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.registry import config_classes
from bishare.models.attach import attach, remove
from bishare.serving.pool import AdapterPool
from tests.randomised import randomise
from tests.serving.rows import MIB


def every_config() -> dict[str, AdapterConfig]:
    """One configuration of each method and form, among them different ranks, targets, layers and owners."""
    methods = config_classes()
    bishare, lora, aslora = methods["bishare"], methods["lora"], methods["aslora"]
    sizes = {"r_local": 1, "r_intra": 2, "r_inter": 3}
    return {
        "lora": lora(r=2),
        "lora of another rank": lora(r=5),
        "lora on other weights": lora(r=2, targets=["o", "gate"]),
        "lora on one layer": lora(r=2, layers=[1]),
        "slice": bishare(transform="slice", **sizes),
        "slice at the end": bishare(transform="slice", position="bottom-right", **sizes),
        "gate": bishare(transform="gate", size=8, **sizes),
        "kronecker": bishare(transform="kronecker", size=8, **sizes),
        "kronecker that is cut": bishare(transform="kronecker", size=12, **sizes),
        "kronecker per rank": bishare(transform="kronecker", size=8, kernel="per_rank", **sizes),
        "merging": bishare(transform="kronecker", size=8, merging=True, **sizes),
        "aslora": aslora(r=3),
        "aslora, merged": aslora(r=3),
        "aslora, merged otherwise": aslora(r=3),
        **{name: config() for name, config in methods.items() if name not in ("bishare", "lora", "aslora")},
    }


@pytest.fixture
def adapter_folders(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> dict[str, Path]:
    """A folder for each configuration."""
    model = tiny_model("llama")
    folders = {}
    for number, (name, config) in enumerate(every_config().items()):
        adapter = attach(model, config)
        randomise(adapter)
        with torch.no_grad():
            for p in adapter.parameters():
                p.mul_(1.0 + 0.05 * number)
        groups = list(adapter.mergeable_groups().values())
        if "otherwise" in name:
            groups[0].tie(0, 2)
        elif "merg" in name:
            for group in groups:
                group.tie(1, 2)
        folders[name] = tmp_path / f"adapter-{number}"
        save_adapter(adapter, folders[name], base="tiny")
        remove(model)
    return folders


@pytest.fixture
def pool(tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]) -> AdapterPool:
    pool = AdapterPool(tiny_model("llama"), adapter_bytes=MIB, factor_bytes=8 * MIB)
    for name, folder in adapter_folders.items():
        pool.add(name, folder)
    return pool
