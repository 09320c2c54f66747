"""The adapted product y = x Wᵀ + b + (x Aᵀ) Bᵀ as one autograd node, and the siblings that share x Aᵀ.

Backward, with g the gradient of y and h = x Aᵀ:

    dBᵀ = hᵀ g        dh = g B        dA = dhᵀ x        dx = g W + dh A

Under dropout x̂ = x ∘ keep stands for x in h and dA, with a factor on h (dropout.py), and dx = g W + (dh A) ∘ keep.

Kept for it: x where A is trained, h (one tensor of each for all siblings), and references to W and to the assembled
factors. Both sums are taken inside the matrix products (``addmm``). Weights that read the same x, such as q, k and v,
form all their h in one product, with the first of them; rows of A that they have in common are in it once.

Shapes: x [..., in], W [out, in] (Conv1D: [in, out]), A [R, in] for all siblings, h [tokens, R], of which a weight reads
r columns, Bᵀ [r, out].
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bishare.ops.assembly import Rows
from bishare.ops.dropout import Keep, dropped
from bishare.ops.matmul import mm, mm_over_tokens


class Frozen(NamedTuple):
    """The frozen weight as a module holds it."""

    weight: Tensor
    bias: Tensor | None
    transposed: bool
    """Stored as [in, out]."""


class LowRank(NamedTuple):
    """The update of a weight, in a stack with the rows of A that its siblings read."""

    A: Tensor  # [R, in]
    B: Tensor  # [r, out]: B transposed, the scale inside
    rows: Rows  # the weight's own: r of the R


def first_product(
    x: Tensor, frozen: Frozen, update: LowRank, *, keep: Keep | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The output, and h [tokens, R] for the siblings.

    Args:
        x: Input [..., in].
        frozen: The weight itself.
        update: Its update.
        keep: What dropout leaves of x for the update.
        dtype: Type of all products.
    """
    mask, factor = (None, 1.0) if keep is None else keep
    return _First.apply(x, mask, factor, *frozen, *update, dtype)  # type: ignore[no-any-return, no-untyped-call]


def next_product(x: Tensor, h: Tensor, frozen: Frozen, B: Tensor, rows: Rows, *, dtype: torch.dtype) -> Tensor:
    """The output of a sibling; B is its Bᵀ [r, out], and ``rows`` of A are its own."""
    return _Next.apply(x, h, *frozen, B, rows, dtype)  # type: ignore[no-any-return, no-untyped-call]


def plain_product(x: Tensor, frozen: Frozen) -> Tensor:
    """The frozen weight's output alone."""
    return F.linear(x, frozen.weight.T if frozen.transposed else frozen.weight, frozen.bias)


def _frozen(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, *, training: bool) -> Tensor:
    """[tokens, out] in the type of x; outside training bit by bit that of the base model."""
    W = weight.to(x.dtype)
    return mm(x, W if transposed else W.T, None if bias is None else bias.to(x.dtype), like_torch=not training)


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _columns(h: Tensor, rows: Rows) -> Tensor:
    """The columns [tokens, r] of h that a weight reads."""
    runs = [h[:, first:end] for first, end in rows]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _placed(g: Tensor, rows: Rows, like: Tensor) -> Tensor:
    """The reverse for a gradient [tokens, r]: [tokens, R] as h, zero in the columns that the weight does not read."""
    if g.shape == like.shape:
        return g
    placed = torch.zeros_like(like)
    runs = torch.split(g, [end - first for first, end in rows], dim=1)
    for (first, end), run in zip(rows, runs, strict=True):
        placed[:, first:end] = run
    return placed


class _First(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor | None,
        factor: float,
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        A: Tensor,
        B: Tensor,
        rows: Rows,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        tokens = _flat(x, dtype)
        mask = None if mask is None else mask.view(tokens.shape)
        read = tokens if mask is None else dropped(tokens, mask)
        h = mm(read, A.T)
        if mask is not None:
            h.mul_(factor)
        y = _frozen(tokens, weight, bias, transposed, training=any(ctx.needs_input_grad)).addmm_(_columns(h, rows), B)
        # W by reference: ZeRO-3 gathers it for the backward pass of its module.
        ctx.save_for_backward(read if ctx.needs_input_grad[6] else None, mask, h, weight, A, B)
        ctx.transposed, ctx.rows, ctx.factor, ctx.shape, ctx.type = transposed, rows, factor, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return y.view(*x.shape[:-1], y.shape[-1]), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, of_siblings: Tensor | None) -> tuple[Tensor | None, ...]:
        read, mask, h, weight, A, B = ctx.saved_tensors
        g = g_B = None
        g_h = of_siblings
        if gradient is not None:
            g = _flat(gradient, h.dtype)
            g_B = mm_over_tokens(_columns(h, ctx.rows), g)
            own = _placed(mm(g, B.T), ctx.rows, h)
            g_h = own if g_h is None else g_h + own
        if g_h is None:
            g_h = torch.zeros_like(h)
        if mask is not None:
            g_h = g_h * ctx.factor
        g_x = None
        if ctx.needs_input_grad[0]:
            if g is not None:
                W = weight.to(g.dtype)
                g_x = mm(g, W.T if ctx.transposed else W)
            if g_x is not None and mask is None:
                g_x.addmm_(g_h, A)
            else:
                update = mm(g_h, A)
                update = update if mask is None else dropped(update, mask)
                g_x = update if g_x is None else g_x.add_(update)
            g_x = g_x.view(ctx.shape).to(ctx.type)
        g_A = None if read is None else mm_over_tokens(g_h, read)
        return g_x, None, None, None, None, None, g_A, g_B, None, None


class _Next(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        B: Tensor,
        rows: Rows,
        dtype: torch.dtype,
    ) -> Tensor:
        y = _frozen(_flat(x, dtype), weight, bias, transposed, training=any(ctx.needs_input_grad))
        y.addmm_(_columns(h, rows), B)
        ctx.save_for_backward(h, weight, B)
        ctx.transposed, ctx.rows, ctx.shape, ctx.type = transposed, rows, x.shape, x.dtype
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, B = ctx.saved_tensors
        g = _flat(gradient, h.dtype)
        g_x = None
        if ctx.needs_input_grad[0]:
            W = weight.to(g.dtype)
            g_x = mm(g, W.T if ctx.transposed else W).view(ctx.shape).to(ctx.type)
        g_h, g_B = _placed(mm(g, B.T), ctx.rows, h), mm_over_tokens(_columns(h, ctx.rows), g)
        return g_x, g_h, None, None, None, g_B, None, None
