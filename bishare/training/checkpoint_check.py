"""Compares a training checkpoint with the model before anything is loaded."""

from collections.abc import Mapping
from typing import Any

import torch

from bishare.errors import UserError


def check_shapes(checkpoint: Mapping[str, Any], wanted: Mapping[str, torch.Size], *, prefix: str) -> None:
    """Compare the tensors of a checkpoint with those of the model.

    Args:
        checkpoint: As read by Lightning, with ``state_dict`` and the entries of ``BiShareModule``.
        wanted: Shapes by name in the state dict.
        prefix: Left out of names in messages.

    Raises:
        UserError: A tensor is missing, unknown or of a different shape.
    """
    saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    about = checkpoint.get("bishare", {})
    for name in sorted(saved.keys() | wanted.keys()):
        # The first difference is enough: a different method changes most names.
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"the checkpoint ({about.get('method', 'no method')} on {about.get('base', 'no base')}) does not "
                f"fit this run: {name.removeprefix(prefix)} has shape {_shape(saved.get(name))} there and "
                f"{_shape(wanted.get(name))} here. Use the configuration it was trained with."
            )


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(list(shape))
