"""AdamW over an adapter's named parameter groups, and the learning-rate schedule."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bishare.adapters.base import Adapter
from bishare.errors import UserError


def parameter_groups(
    adapter: Adapter, head: Iterable[nn.Parameter] = (), *, learning_rate: float, lr_factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The adapter's parameters as optimizer groups, each with its name and learning rate.

    Args:
        adapter: Groups are named ``level.role``, e.g. ``local.A`` or ``intra.kernel``.
        head: Parameters trained in full beside the adapter: a group named ``head``, if not empty.
        learning_rate: Rate of a group without a factor.
        lr_factors: Factor by group name (``intra.B``) or by role for all levels (``B``: LoRA+ of Hayou et al., 2024,
            arXiv:2402.12354); a group's own name wins.

    Raises:
        UserError: A factor names no group.
    """
    groups = dict(adapter.groups())
    if head_parameters := list(head):
        groups["head"] = head_parameters
    roles = {name.split(".")[-1] for name in groups}
    if unknown := sorted(set(lr_factors) - set(groups) - roles):
        known = ", ".join((*sorted(roles), *groups))
        raise UserError(f"lr_factors names {unknown[0]!r}; this adapter has {known}.")
    found: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        # The group's own factor comes before the factor of the role.
        factor = lr_factors.get(name, lr_factors.get(name.split(".")[-1], 1.0))
        found.append({"params": parameters, "name": name, "lr": learning_rate * factor})
    return found


def adamw(groups: list[dict[str, Any]], *, weight_decay: float) -> AdamW:
    """AdamW (Loshchilov & Hutter, 2019) with torch's fused update, on the CPU too."""
    parameters: list[nn.Parameter] = []
    for group in groups:
        parameters += group["params"]
    # torch refuses the fused update on further devices, e.g. meta.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return AdamW(groups, weight_decay=weight_decay, fused=fused)


@torch.no_grad()
def gradient_norm(optimizer: Optimizer, scaler: GradScaler | None = None) -> Tensor:
    """L2 norm over the gradients of all parameters together; a parameter without a gradient counts as zero.

    Args:
        optimizer: Its parameters hold the whole gradients.
        scaler: Scales the loss of fp16 training, None elsewhere.

    Returns:
        A scalar on the gradients' device, without waiting for the device.
    """
    gradients = []
    for group in optimizer.param_groups:
        gradients += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        norm = norm / scaler.scale(torch.ones_like(norm))  # fused optimizers unscale inside their step
    return norm


def linear_schedule(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Factor of the learning rate at an optimizer step, counted from 0.

    The factor rises linearly from 1/100 at step 0 to 1 at ``warmup_steps``; a factor of 0 would waste the first step.
    Then the factor falls linearly and reaches 0 at ``total_steps``, after the last step.
    """
    if step < warmup_steps:
        return 0.01 + 0.99 * step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def warmup_and_decay(optimizer: AdamW, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """The scheduler of :func:`linear_schedule`, stepped once per optimizer step."""
    return LambdaLR(optimizer, lambda step: linear_schedule(step, warmup_steps=warmup_steps, total_steps=total_steps))


def total_steps_of(trainer: Trainer) -> int:
    """Optimizer steps of the whole run, from the data module's ``steps_per_epoch`` if there is any.

    Raises:
        UserError: The trainer sets no end.
    """
    steps_per_epoch = getattr(getattr(trainer, "datamodule", None), "steps_per_epoch", None)
    if trainer.max_epochs == -1 or steps_per_epoch is None:
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise UserError("the learning rate needs the length of the run: set trainer.max_steps or max_epochs.")
        # For loaders of Lightning's own kind. With ours, Lightning would build the loader early and lose its position.
        return int(trainer.estimated_stepping_batches)
    batches = int(steps_per_epoch) * trainer.accumulate_grad_batches
    limit = trainer.limit_train_batches
    # An int is a number of batches, a float a share.
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
