"""The adapted product y = x Wᵀ + b + (x Aᵀ) Bᵀ as one autograd node, with x Aᵀ shared by the weights that read x.

    h = x Aᵀ        dBᵀ = hᵀ g        dh = g B        dA = dhᵀ x        dx = g W + dh A

Here g is the gradient of y. Under dropout x̂ = x ∘ keep replaces x in h and dA, a factor multiplies h (``dropout.py``),
and dx = g W + (dh A) ∘ keep.

Kept for the backward pass: x where A is trained and h, once for all siblings, and references to W and to the assembled
factors. Both sums are taken inside the matrix products (``addmm``). Siblings are weights with the same input, for
example q, k and v. The first sibling forms h for all of them in one product; rows of A that several siblings read
enter the product once.

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
    """The frozen weight as its module stores it."""

    weight: Tensor
    bias: Tensor | None
    transposed: bool
    """Stored as [in, out]."""


class LowRank(NamedTuple):
    """The update of a weight, and where its rows stand in the A of all siblings."""

    A: Tensor  # [R, in]
    B: Tensor  # [r, out]: B transposed, the scale inside
    rows: Rows  # the weight's own: r of the R


def lora_linear(
    x: Tensor, frozen: Frozen, update: LowRank, *, keep: Keep | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The adapted output [..., out], and h [tokens, R] for the siblings.

    Args:
        x: Input [..., in].
        frozen: The weight itself.
        update: Its update.
        keep: What dropout leaves of x for the update.
        dtype: Type of all products.
    """
    mask, factor = (None, 1.0) if keep is None else keep
    return _LoraLinear.apply(x, mask, factor, *frozen, *update, dtype)  # type: ignore[no-any-return, no-untyped-call]


def sibling_lora_linear(x: Tensor, h: Tensor, frozen: Frozen, B: Tensor, rows: Rows, *, dtype: torch.dtype) -> Tensor:
    """The adapted output [..., out] of a sibling, from the h [tokens, R] of the first.

    Args:
        x: Input [..., in].
        h: As returned by :func:`lora_linear` for the same input.
        frozen: The sibling's weight.
        B: The sibling's Bᵀ [r, out].
        rows: The rows of A that the sibling reads.
        dtype: Type of all products.
    """
    return _SiblingLoraLinear.apply(x, h, *frozen, B, rows, dtype)  # type: ignore[no-any-return, no-untyped-call]


def base_linear(x: Tensor, frozen: Frozen) -> Tensor:
    """The output [..., out] of the frozen weight alone."""
    weight = frozen.weight.T if frozen.transposed else frozen.weight
    return F.linear(x, weight, frozen.bias)


class _LoraLinear(torch.autograd.Function):
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
        if mask is None:
            read = tokens
            h = mm(read, A.T)
        else:
            mask = mask.view(tokens.shape)
            read = dropped(tokens, mask)
            h = mm(read, A.T).mul_(factor)  # cheaper on r columns than on x
        y = _base_product(tokens, weight, bias, transposed, training=any(ctx.needs_input_grad))
        y.addmm_(_columns(h, rows), B)
        kept = read if ctx.needs_input_grad[6] else None  # x is read for the gradient of A alone
        # W by reference: ZeRO-3 gathers it for the backward pass of its module.
        ctx.save_for_backward(kept, mask, h, weight, A, B)
        ctx.transposed, ctx.rows, ctx.factor, ctx.shape, ctx.type = transposed, rows, factor, x.shape, x.dtype
        # An output that nothing reads then has the gradient None instead of zeros.
        ctx.set_materialize_grads(False)
        return y.view(*x.shape[:-1], y.shape[-1]), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, g_h_siblings: Tensor | None) -> tuple[Tensor | None, ...]:
        read, mask, h, weight, A, B = ctx.saved_tensors
        g = g_B = g_x = g_A = None
        g_h = g_h_siblings
        if gradient is not None:
            g = _flat(gradient, h.dtype)
            g_B = mm_over_tokens(_columns(h, ctx.rows), g)
            g_h = _placed(mm(g, B.T), ctx.rows, h)
            if g_h_siblings is not None:
                g_h = g_h + g_h_siblings
        if g_h is None:
            g_h = torch.zeros_like(h)
        if mask is not None:
            g_h = g_h * ctx.factor
        if ctx.needs_input_grad[0]:
            g_x = _input_gradient(g, g_h, weight, ctx.transposed, A, mask).view(ctx.shape).to(ctx.type)
        if read is not None:
            g_A = mm_over_tokens(g_h, read)
        return g_x, None, None, None, None, None, g_A, g_B, None, None


class _SiblingLoraLinear(torch.autograd.Function):
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
        y = _base_product(_flat(x, dtype), weight, bias, transposed, training=any(ctx.needs_input_grad))
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
            g_x = _base_gradient(g, weight, ctx.transposed).view(ctx.shape).to(ctx.type)
        # The gradient of h reaches x through the first sibling's node.
        g_h, g_B = _placed(mm(g, B.T), ctx.rows, h), mm_over_tokens(_columns(h, ctx.rows), g)
        return g_x, g_h, None, None, None, g_B, None, None


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _base_product(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, *, training: bool) -> Tensor:
    """[tokens, out] in the type of x; outside training bit by bit as the base model's."""
    W = weight.to(x.dtype)
    if bias is not None:
        bias = bias.to(x.dtype)
    return mm(x, W if transposed else W.T, bias, like_torch=not training)


def _base_gradient(g: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """g W [tokens, in] in the type of g [tokens, out]."""
    W = weight.to(g.dtype)
    return mm(g, W.T if transposed else W)


def _input_gradient(
    g: Tensor | None, g_h: Tensor, weight: Tensor, transposed: bool, A: Tensor, mask: Tensor | None
) -> Tensor:
    """g W + (g_h A) ∘ keep [tokens, in]; g is None where only siblings have a gradient."""
    if g is not None and mask is None:
        return _base_gradient(g, weight, transposed).addmm_(g_h, A)
    update = mm(g_h, A)
    if mask is not None:
        update = dropped(update, mask)
    if g is None:
        return update
    return _base_gradient(g, weight, transposed).add_(update)


def _columns(h: Tensor, rows: Rows) -> Tensor:
    """The columns [tokens, r] of h that a weight reads."""
    runs = [h[:, first:end] for first, end in rows]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _placed(g: Tensor, rows: Rows, like: Tensor) -> Tensor:
    """Reverse of :func:`_columns` for a gradient [tokens, r]: [tokens, R], zero in columns of siblings alone."""
    if g.shape == like.shape:
        return g
    placed = torch.zeros_like(like)
    first_column = 0
    for first, end in rows:
        last_column = first_column + end - first
        placed[:, first:end] = g[:, first_column:last_column]
        first_column = last_column
    return placed
