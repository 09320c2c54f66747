"""Language-model head and cross-entropy in chunks of labelled positions: the logits of a whole batch never exist.

    loss = max(logits) - log max(p) - logits[label]     d loss / d logits = p - one-hot(label)     p = softmax(logits)

The gradient of a chunk is formed together with the loss: p in fp32, a few rows at a time to stay in the processor's
cache, and the gradient written over the logits. Nothing of vocabulary width outlives its chunk. The head is called as
a module, also for the gradient.

Shapes: m labelled positions, d hidden width, v vocabulary; hidden states [m, d], labels [m], logits of c positions
[c, v].
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bishare.ops.frozen_linear import FrozenLinear

CHUNK_BYTES = 30 * 2**20
"""Bytes of logits in existence at once. Smaller chunks make slower matrix products. glibc asks the system anew for
every block of 32 MiB and more."""
SLICE_VALUES = 2**20
"""Number of logits whose p exists at once, in fp32."""


def linear_cross_entropy(
    head: nn.Module, hidden: Tensor, labels: Tensor, *, gathered_late: bool = False
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of ``head(hidden)``.

    Args:
        head: A frozen module from [.., d] to [.., v].
        hidden: Hidden states at the labelled positions [m, d].
        labels: Labels [m].
        gathered_late: Whether ZeRO-3 gathers the head's weight for each call.

    Returns:
        The cross-entropy summed in fp32 [], and the number of rows where no token is likelier than the label [].
    """
    if gathered_late:
        # Each call of the head is a collective: the same number of calls on every rank.
        logits = head(hidden).float()
        return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) == labels).sum()
    return _LinearCrossEntropy.apply(hidden, labels, head)  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
        with_gradient = ctx.needs_input_grad[0]
        total = hidden.new_zeros((), dtype=torch.float32)
        num_correct = labels.new_zeros(())
        gradients: list[Tensor] = []
        width = getattr(head, "out_features", 2**17)
        num_rows = max(1, CHUNK_BYTES // (width * hidden.element_size()))
        chunks = zip(torch.split(hidden.detach(), num_rows), torch.split(labels, num_rows), strict=True)
        for chunk, chunk_labels in chunks:
            loss, correct, gradient = _chunk_loss(head, chunk, chunk_labels[:, None], width, with_gradient)
            total += loss
            num_correct += correct
            if gradient is not None:
                gradients.append(gradient)
        if with_gradient:
            ctx.save_for_backward(torch.cat(gradients) if gradients else torch.zeros_like(hidden))
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradient.to(saved.dtype), None, None


def _chunk_loss(
    head: nn.Module, hidden: Tensor, labels: Tensor, width: int, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss and number of correct labels [] of a chunk [c, d] with labels [c, 1], and the gradient [c, d] if wanted."""
    total, num_correct = hidden.new_zeros((), dtype=torch.float32), labels.new_zeros(())
    with torch.set_grad_enabled(with_gradient):
        chunk = hidden.requires_grad_(with_gradient)
        logits = head(chunk)
    values = logits.detach()
    if not _is_product(head):
        values = values.clone()  # the head's own backward pass may read its result again
    num_rows = max(1, SLICE_VALUES // width)
    for rows, row_labels in zip(torch.split(values, num_rows), torch.split(labels, num_rows), strict=True):
        p = torch.softmax(rows, -1, dtype=torch.float32)
        largest, chosen = rows.amax(-1, keepdim=True), rows.gather(1, row_labels)
        total += (largest.float() - p.amax(-1, keepdim=True).log() - chosen.float()).sum()
        num_correct += (chosen == largest).sum()
        if with_gradient:
            rows.copy_(p.scatter_add_(1, row_labels, p.new_full(row_labels.shape, -1.0)))
    if not with_gradient:
        return total, num_correct, None
    return total, num_correct, torch.autograd.grad(logits, chunk, values)[0]


def _is_product(head: nn.Module) -> bool:
    """Whether the logits are a plain product and no hook reads them."""
    hooks = (head._forward_hooks, head._backward_hooks, head._backward_pre_hooks)
    return type(head) in (nn.Linear, FrozenLinear) and not any(hooks)
