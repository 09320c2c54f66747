"""Adapters with random values: a fresh one's zero B would let almost any mistake pass."""

import torch

from bishare.adapters.base import Adapter


def randomise(adapter: Adapter) -> None:
    """Draw every parameter at random, the same values for the same adapter.

    Gates and kernels multiply a shared factor, so they are drawn larger for updates about as large as the weights.
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, group in adapter.groups().items():
            std = 0.1 if name.endswith((".A", ".B")) else 0.5
            for p in group:
                p.copy_(torch.randn(p.shape, generator=generator) * std)
