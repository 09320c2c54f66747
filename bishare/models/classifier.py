"""The head of a classifier, trained in full beside the adapter.

The head is every module outside the encoder, and the encoder's pooler. RoBERTa keeps the pooler in its head and BERT in
its encoder, and the pretrained pooler of both served a different task. The head is fp32 for frozen weights of any type.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.base import Adapter


def head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The head's modules by name in the model; works on the meta device."""
    encoder = model.base_model
    modules: dict[str, nn.Module] = {}
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module):
        modules[f"{model.base_model_prefix}.pooler"] = pooler
    for name, module in model.named_children():
        if module is not encoder and not isinstance(module, Adapter):
            modules[name] = module
    # Dropout and activations have nothing to train.
    return {name: module for name, module in modules.items() if list(module.parameters())}


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The head's parameters by name in the model."""
    found: dict[str, nn.Parameter] = {}
    for name, module in head_modules(model).items():
        found |= module.named_parameters(prefix=name)
    return found


def train_head(model: PreTrainedModel) -> None:
    """Let a frozen model's head be trained, in fp32."""
    for module in head_modules(model).values():
        module.float().requires_grad_(True)
        module.register_forward_pre_hook(_cast)


def _cast(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in the type of the head's parameters."""
    # Looked up for each call: DeepSpeed may have given the head the type of the frozen weights.
    dtype = next(p for p in module.parameters() if p.is_floating_point()).dtype
    cast: list[Any] = []
    for value in arguments:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        cast.append(value.to(dtype) if is_float else value)
    return tuple(cast)
