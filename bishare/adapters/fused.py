"""The adapted product y = x Wᵀ + b + (x Aᵀ) Bᵀ as one autograd node, and the siblings that share x Aᵀ.

Backward, with g the gradient of y and h = x Aᵀ:

    dBᵀ = hᵀ g        dh = g B        dA = dhᵀ x        dx = g W + dh A

Under dropout x̂ = x ∘ keep stands for x in h and dA, with a factor on h (dropout.py), and dx = g W + (dh A) ∘ keep.

Kept for it: x (one tensor for all siblings), r columns h, and references to W and to the assembled factors. Both
sums are taken inside the matrix products (``addmm``). Weights that read the same x, such as q, k and v, form all
their h in one product, with the first of them.

Shapes: x [..., in], W [out, in] (Conv1D: [in, out]), A [R, in] for all siblings, Bᵀ [r, out], h [tokens, r].
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bishare.adapters.dropout import Keep, dropped
from bishare.adapters.products import mm


class Frozen(NamedTuple):
    """The frozen weight as a module holds it."""

    weight: Tensor
    bias: Tensor | None
    transposed: bool
    """Stored as [in, out]."""


class LowRank(NamedTuple):
    """The update of the weight that is computed, and the A of the siblings that will be."""

    A: Tensor  # [R, in], its own rows first
    B: Tensor  # [r, out]: B transposed, the scale inside
    ranks: Sequence[int]
    """Rows of A by weight, its own first; they add up to R."""


def first_product(
    x: Tensor, frozen: Frozen, update: LowRank, *, keep: Keep | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The output, and h of each further sibling.

    Args:
        x: Input [..., in].
        frozen: The weight itself.
        update: Its update, and the rows of its siblings.
        keep: What dropout leaves of x for the update.
        dtype: Type of all products.
    """
    mask, factor = (None, 1.0) if keep is None else keep
    return _First.apply(x, mask, factor, *frozen, update.A, update.B, tuple(update.ranks), dtype)  # type: ignore[no-any-return, no-untyped-call]


def next_product(x: Tensor, h: Tensor, frozen: Frozen, B: Tensor, *, dtype: torch.dtype) -> Tensor:
    """The output of a sibling whose h [tokens, r] is there; B is its Bᵀ [r, out]."""
    return _Next.apply(x, h, *frozen, B, dtype)  # type: ignore[no-any-return, no-untyped-call]


def plain_product(x: Tensor, frozen: Frozen) -> Tensor:
    """The frozen weight's output alone."""
    return F.linear(x, frozen.weight.T if frozen.transposed else frozen.weight, frozen.bias)


def _frozen(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, *, training: bool) -> Tensor:
    """[tokens, out] in the type of x; outside training bit by bit that of the base model."""
    W = weight.to(x.dtype)
    return mm(x, W if transposed else W.T, None if bias is None else bias.to(x.dtype), like_torch=not training)


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


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
        ranks: tuple[int, ...],
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        tokens = _flat(x, dtype)
        mask = None if mask is None else mask.view(tokens.shape)
        read = tokens if mask is None else dropped(tokens, mask)
        products = mm(read, A.T)
        h = torch.split(products if mask is None else products.mul_(factor), list(ranks), dim=1)
        y = _frozen(tokens, weight, bias, transposed, training=any(ctx.needs_input_grad)).addmm_(h[0], B)
        # W by reference: ZeRO-3 gathers it for the backward pass of its module.
        ctx.save_for_backward(read, mask, h[0], weight, A, B)
        ctx.transposed, ctx.ranks, ctx.factor, ctx.shape, ctx.type = transposed, ranks, factor, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return y.view(*x.shape[:-1], y.shape[-1]), *h[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *siblings: Tensor | None) -> tuple[Tensor | None, ...]:
        read, mask, h, weight, A, B = ctx.saved_tensors
        g = own = g_B = None
        if gradient is not None:
            g = _flat(gradient, read.dtype)
            own, g_B = mm(g, B.T), mm(h.T, g)
        parts = [
            read.new_zeros(len(read), rank) if part is None else part
            for part, rank in zip((own, *siblings), ctx.ranks, strict=True)
        ]
        g_h = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # [tokens, R]
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
        return g_x, None, None, None, None, None, mm(g_h.T, read), g_B, None, None


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
        dtype: torch.dtype,
    ) -> Tensor:
        y = _frozen(_flat(x, dtype), weight, bias, transposed, training=any(ctx.needs_input_grad)).addmm_(h, B)
        ctx.save_for_backward(h, weight, B)
        ctx.transposed, ctx.shape, ctx.type = transposed, x.shape, x.dtype
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
        return g_x, mm(g, B.T), None, None, None, mm(h.T, g), None
