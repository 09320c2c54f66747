"""Activation checkpointing: a layer's activations are dropped and computed again in the backward pass.

Chen et al., 2016 (arXiv:1604.06174). Releases of transformers before 5.23 know only the name gradient checkpointing.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Have each layer run again in the backward pass, in the non-re-entrant form, needed for shared parameters."""
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def runs_again(model: nn.Module) -> bool:
    """Whether some layer of a forward pass begun now runs a second time in the backward pass."""
    return torch.is_grad_enabled() and any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
