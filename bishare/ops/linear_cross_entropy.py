"""The language-model head where labels are, in chunks: the logits of a whole batch never exist.

Hidden states go through the head only at labelled positions. The gradient of each chunk is formed at once, from

    loss = max(logits) - log max(p) - logits[label]     d loss / d logits = p - one-hot(label)     p = softmax(logits)

with p in fp32, a few rows at a time so that they stay in the processor's cache, and the gradient written over the
logits. So nothing of vocabulary width outlives its chunk. The head is called as a module, also for the gradient.

Shapes: m labelled positions, d hidden width, v vocabulary, c rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bishare.ops.frozen_linear import FrozenLinear

CHUNK_BYTES = 30 * 2**20
"""Logits in existence at once. Smaller chunks make slower matrix products; blocks of 32 MiB and more, glibc asks of
the system anew each time."""
SLICE_VALUES = 2**20
"""Logits of which p exists at once, in fp32."""


def head_loss(head: nn.Module, hidden: Tensor, wanted: Tensor, *, gathered_late: bool = False) -> tuple[Tensor, Tensor]:
    """Cross-entropy of ``head(hidden)``, summed in fp32, and the rows where no token is likelier than the label.

    Args:
        head: A frozen module from [.., d] to [.., v].
        hidden: Hidden states at the labelled positions [m, d].
        wanted: Their labels [m].
        gathered_late: Whether ZeRO-3 gathers the head's weight for each call.
    """
    if gathered_late:
        # Each call of the head is a collective: the same number of calls on every rank.
        logits = head(hidden).float()
        return F.cross_entropy(logits, wanted, reduction="sum"), (logits.argmax(-1) == wanted).sum()
    return _HeadLoss.apply(hidden, wanted, head)  # type: ignore[no-any-return, no-untyped-call]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, wanted: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
        with_gradient = ctx.needs_input_grad[0]
        total = hidden.new_zeros((), dtype=torch.float32)
        num_correct = wanted.new_zeros(())
        gradients: list[Tensor] = []
        width = getattr(head, "out_features", 2**17)
        rows = max(1, CHUNK_BYTES // (width * hidden.element_size()))
        for chunk, labels in zip(torch.split(hidden.detach(), rows), torch.split(wanted, rows), strict=True):
            loss, correct, gradient = _of_chunk(head, chunk, labels[:, None], width, with_gradient=with_gradient)
            total += loss
            num_correct += correct
            gradients += [] if gradient is None else [gradient]
        if with_gradient:
            ctx.save_for_backward(torch.cat(gradients) if gradients else torch.zeros_like(hidden))
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradient.to(saved.dtype), None, None


def _of_chunk(
    head: nn.Module, hidden: Tensor, labels: Tensor, width: int, *, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss and number of likeliest labels [] of some rows [m, d] with labels [m, 1], and the rows' gradient."""
    total, num_correct = hidden.new_zeros((), dtype=torch.float32), labels.new_zeros(())
    with torch.set_grad_enabled(with_gradient):
        chunk = hidden.requires_grad_(with_gradient)
        logits = head(chunk)
    # Something else than a product may read its result again.
    values = logits.detach() if _is_product(head) else logits.detach().clone()
    rows = max(1, SLICE_VALUES // width)
    for its, label in zip(torch.split(values, rows), torch.split(labels, rows), strict=True):
        p = torch.softmax(its, -1, dtype=torch.float32)
        largest, chosen = its.amax(-1, keepdim=True), its.gather(1, label)
        total += (largest.float() - p.amax(-1, keepdim=True).log() - chosen.float()).sum()
        num_correct += (chosen == largest).sum()
        if with_gradient:
            its.copy_(p.scatter_add_(1, label, p.new_full(label.shape, -1.0)))
    return total, num_correct, torch.autograd.grad(logits, chunk, values)[0] if with_gradient else None


def _is_product(head: nn.Module) -> bool:
    """Whether nothing but a product makes the logits, and nothing else looks at them."""
    hooks = (head._forward_hooks, head._backward_hooks, head._backward_pre_hooks)
    return type(head) in (nn.Linear, FrozenLinear) and not any(hooks)
