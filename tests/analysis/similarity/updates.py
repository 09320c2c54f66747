"""Updates of three layers with three kinds of weights, and their matrices."""

import numpy as np
import torch

from bishare.adapters.factors import Factors, Slot

SHAPES = {"q": (12, 12), "k": (12, 8), "down": (20, 12)}  # in, out


LAYERS = (0, 2, 5)


def slot(layer: int, kind: str, n_in: int, n_out: int) -> Slot:
    return Slot(name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=n_in, out_features=n_out)


def updates() -> dict[Slot, Factors]:
    torch.manual_seed(0)
    return {
        slot(layer, kind, n_in, n_out): Factors(
            torch.randn(3, n_in, dtype=torch.float64), torch.randn(n_out, 3, dtype=torch.float64) * 10.0**-layer
        )
        for layer in LAYERS
        for kind, (n_in, n_out) in SHAPES.items()
    }


def matrices(found: dict[Slot, Factors]) -> dict[tuple[int, str], np.ndarray]:
    return {(slot.layer, slot.kind): (update.B @ update.A).numpy() for slot, update in found.items()}
