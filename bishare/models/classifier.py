"""The head of a classifier: the part of the model that is trained in full beside the adapter.

Every module outside the encoder belongs to it, and the encoder's pooler: RoBERTa keeps that layer in its head, BERT in
its encoder, and both have it from another task. The head is fp32 whatever the type of the frozen weights.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.base import Adapter


def head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The head's modules by their names in the model; shapes will do."""
    encoder = model.base_model
    modules = {n: m for n, m in model.named_children() if m is not encoder and not isinstance(m, Adapter)}
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module):
        modules = {f"{model.base_model_prefix}.pooler": pooler} | modules
    return {name: module for name, module in modules.items() if any(True for _ in module.parameters())}


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The head's parameters by their names in the model."""
    return {
        f"{name}.{rest}": parameter
        for name, module in head_modules(model).items()
        for rest, parameter in module.named_parameters()
    }


def train_head(model: PreTrainedModel) -> None:
    """Let a frozen model's head be trained, in fp32."""
    for module in head_modules(model).values():
        module.float().requires_grad_(True)
        module.register_forward_pre_hook(_cast)


def _cast(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in the type of the head's values, which DeepSpeed may have changed to that of the others."""
    dtype = next(p for p in module.parameters() if p.is_floating_point()).dtype
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in arguments
    )
