"""Adapters with random values, as a training would leave them."""

from pathlib import Path

import torch

from bishare.adapters.base import AdapterConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.models.attach import attach
from bishare.models.loading import load_base
from tests.randomised import randomise


def write_adapter(base: str, folder: Path, config: AdapterConfig, *, scale: float = 1.0, trained: bool = True) -> str:
    """Write an adapter of ``base``, with B times ``scale``, or as it starts.

    Returns:
        The folder.
    """
    adapter = attach(load_base(base, dtype="float32"), config)
    if trained:
        randomise(adapter)
        with torch.no_grad():
            for name, group in adapter.groups().items():
                for p in group if name.endswith(".B") else ():
                    p.mul_(0.1 * scale)
    save_adapter(adapter, folder, base=base)
    return str(folder)
