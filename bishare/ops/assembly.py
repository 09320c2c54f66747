"""Assembles a factor from the blocks that it is stacked of, in one autograd node and in the type of the product.

    rows of a factor = scale (K ⊗ S), K absent for a block that is used as it is stored

Written block by block into one buffer, so nothing but the stored parameters is kept for the backward pass. Factors of
one layout, such as those of a kind in all layers, are written together, in no more operations than one of them. The
plain path, :meth:`bishare.adapters.base.Adapter.parts`, says the same through torch's own operations; tests hold them
equal.

Shapes: S [a, s], K [b, k]; a factor is [r, n] (A, or B transposed), cut where k s exceeds n. Each may have a leading
dimension: l factors at once.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Block(NamedTuple):
    """Some rows of a factor: a stored matrix, or a window of it, or it under a Kronecker kernel."""

    shared: Tensor  # [a, s], or [s, a] on the B side
    kernel: Tensor | None = None  # [b, k], or [k, b] on the B side
    start: int = 0
    """First column of the window, for a matrix that is wider than the factor."""
    per_rank: bool = False
    """Row i of the kernel goes with row i of the matrix, instead of every row with every row."""


class Blocks(NamedTuple):
    """One slot's factors before assembly."""

    A: Sequence[Block]
    B: Sequence[Block]
    """Stored as columns of B; the scale is not in them."""
    scale: float


def rank(blocks: Sequence[Block]) -> int:
    """Rows of the factor that the blocks of an A make up."""
    return sum(_rows(block.shared, block.kernel, block.per_rank) for block in blocks)


Rows = tuple[tuple[int, int], ...]
"""Some rows of a stack of blocks: the first and the end of each run."""


def stack_of(factors: Sequence[Sequence[Block]]) -> tuple[list[Block], list[Rows]]:
    """One stack for several As, in which a block that they share stands once, and the rows that each of them reads.

    Weights that read one input share the windows of Slice Sharing and the random A of VeRA. What the first reads comes
    first, in its order.
    """
    stack: list[Block] = []
    places: dict[tuple[Any, ...], tuple[int, int]] = {}
    of_each: list[Rows] = []
    end = 0
    for factor in factors:
        runs: list[tuple[int, int]] = []
        for block in factor:
            key = id(block.shared), id(block.kernel), block.start, block.per_rank
            if key not in places:
                stack.append(block)
                places[key] = (end, end + rank([block]))
                end = places[key][1]
            first, last = places[key]
            if runs and runs[-1][1] == first:
                first = runs.pop()[0]
            runs.append((first, last))
        of_each.append(tuple(runs))
    return stack, of_each


def assemble(blocks: Sequence[Block], *, length: int, dtype: torch.dtype, scale: float = 1.0, side: str) -> Tensor:
    """The blocks stacked along the rank, times ``scale``: A [r, length] for side ``A``, Bᵀ [r, length] for ``B``."""
    return assemble_each([blocks], length=length, dtype=dtype, scale=scale, side=side)[0]


def assemble_each(
    factors: Sequence[Sequence[Block]], *, length: int, dtype: torch.dtype, scale: float = 1.0, side: str
) -> tuple[Tensor, ...]:
    """What :func:`assemble` makes of each of these, whose blocks have the same shapes and options."""
    # Each place in the layout: what stands there in all of the factors, or the one tensor that they share.
    places = [
        its for blocks in zip(*factors, strict=True) for its in zip(*(block[:2] for block in blocks), strict=True)
    ]
    places = [its[:1] if all(tensor is its[0] for tensor in its) else its for its in places]
    options = [(block.start, block.per_rank) for block in factors[0]]
    layout = _Layout(options, [len(its) for its in places], len(factors), length, dtype, scale, side == "B")
    return _Assemble.apply(layout, *chain(*places))  # type: ignore[no-any-return, no-untyped-call]


def assemble_into(out: Tensor, blocks: Sequence[Block], *, scale: float = 1.0, side: str) -> None:
    """The same written over ``out`` [..., r, length], without a gradient."""
    _write(out, [_oriented(block, transposed=side == "B") for block in blocks], scale)


class _Layout(NamedTuple):
    options: list[tuple[int, bool]]
    sizes: list[int]
    """For the matrix and the kernel of each block: 1 if all factors have the same, else their number."""
    num_factors: int
    length: int
    dtype: torch.dtype
    scale: float
    transposed: bool

    def blocks(self, tensors: Sequence[Tensor | None]) -> list[Block]:
        """The blocks that these are the matrices and kernels of, as on the A side."""
        stacked = [its[0] if len(its) == 1 else torch.stack(its) for its in self.places(tensors)]
        found = []
        for shared, kernel, (start, per_rank) in zip(stacked[::2], stacked[1::2], self.options, strict=True):
            assert shared is not None
            found.append(_oriented(Block(shared, kernel, start, per_rank), transposed=self.transposed))
        return found

    def places(self, tensors: Sequence[Tensor | None]) -> list[tuple[Any, ...]]:
        """The tensors of each place in the layout."""
        ends = list(accumulate(self.sizes))
        return [tuple(tensors[end - size : end]) for end, size in zip(ends, self.sizes, strict=True)]


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.layout = layout
        ctx.save_for_backward(*tensors)
        blocks = layout.blocks(tensors)
        out = blocks[0].shared.new_empty(layout.num_factors, rank(blocks), layout.length, dtype=layout.dtype)
        _write(out, blocks, layout.scale)
        return out.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_factors: Tensor) -> tuple[Tensor | None, ...]:
        layout: _Layout = ctx.layout
        blocks = layout.blocks(ctx.saved_tensors)
        gradient = torch.stack(of_factors) if len(of_factors) > 1 else of_factors[0].unsqueeze(0)  # [l, r, n]
        gradients: list[Tensor | None] = []
        first = 0
        for shared, kernel, start, per_rank in blocks:
            num_rows = _rows(shared, kernel, per_rank)
            rows = gradient[:, first : first + num_rows].to(shared.dtype)
            first += num_rows
            if layout.scale != 1.0:
                rows = rows * layout.scale
            gradients += _block_gradients(rows, shared, kernel, start, per_rank)
        oriented = [g if g is None or not layout.transposed else g.mT.contiguous() for g in gradients]
        each = [(g,) if g is None or g.dim() == 2 else g.unbind() for g in oriented]
        return None, *chain(*each)


def _write(out: Tensor, blocks: Sequence[Block], scale: float) -> None:
    """Fill ``out`` [..., r, n] with the blocks, as on the A side, one below the other."""
    *several, _, n = out.shape
    first = 0
    for shared, kernel, start, per_rank in blocks:
        num_rows = _rows(shared, kernel, per_rank)
        rows = out[..., first : first + num_rows, :]
        first += num_rows
        shared = shared.expand(*several, *shared.shape[-2:])
        if kernel is None:
            torch.mul(shared[..., start : start + n], scale, out=rows)
            continue
        spread = _spread(kernel if scale == 1.0 else kernel * scale, per_rank)
        repeated = _repeat(shared, per_rank)
        a, s = shared.shape[-2:]
        grid = (*several, a) if per_rank else (*several, kernel.shape[-2], a)
        full, rest = divmod(n, s)  # copies of the matrix, and columns of the one that is cut
        if full:
            whole = rows[..., : n - rest].view(*grid, full, s)
            torch.mul(spread[..., :full, :], repeated, out=whole)
        if rest:
            torch.mul(spread[..., full, :], repeated[..., 0, :rest], out=rows[..., n - rest :].view(*grid, rest))


def _oriented(block: Block, *, transposed: bool) -> Block:
    """The block as on the A side, where rows are ranks: shared [..., a, s], kernel [..., b, k]."""
    if not transposed:
        return block
    return block._replace(shared=block.shared.mT, kernel=None if block.kernel is None else block.kernel.mT)


def _rows(shared: Tensor, kernel: Tensor | None, per_rank: bool) -> int:
    return shared.shape[-2] * (1 if kernel is None or per_rank else kernel.shape[-2])


def _spread(kernel: Tensor, per_rank: bool) -> Tensor:
    """The kernel as [..., r, k, 1] (per rank) or [..., b, 1, k, 1]."""
    return kernel.unsqueeze(-1) if per_rank else kernel.unsqueeze(-2).unsqueeze(-1)


def _repeat(shared: Tensor, per_rank: bool) -> Tensor:
    """The shared matrix as [..., r, 1, s] (per rank) or [..., 1, a, 1, s]."""
    return shared.unsqueeze(-2) if per_rank else shared.unsqueeze(-2).unsqueeze(-4)


def _block_gradients(
    rows: Tensor, shared: Tensor, kernel: Tensor | None, start: int, per_rank: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of a block's matrix and kernel, of their shapes, from the gradient of its rows [l, .., n]."""
    n, s = rows.shape[-1], shared.shape[-1]
    if kernel is None:
        g = _summed(rows, shared)
        return g if n == s else F.pad(g, (start, s - start - n)), None
    k = kernel.shape[-1]
    rows = rows if n == k * s else F.pad(rows, (0, k * s - n))  # the product was cut: what was cut has no gradient
    if per_rank:
        g = rows.view(*rows.shape[:-1], k, s)  # [l, r, k, s]
        g_shared = torch.matmul(kernel.unsqueeze(-2), g).squeeze(-2)
        return _summed(g_shared, shared), _summed(torch.matmul(g, shared.unsqueeze(-1)).squeeze(-1), kernel)
    b, a = kernel.shape[-2], shared.shape[-2]
    g = rows.reshape(len(rows), b, a, k, s)
    g_kernel = (g * shared[..., None, :, None, :]).sum((2, 4))
    if b == 1:
        g_shared = torch.matmul(kernel.unsqueeze(-2), g[:, 0]).squeeze(-2)  # [l, 1, 1, k] [l, a, k, s]
    else:
        g_shared = (g * kernel[..., :, None, :, None]).sum((1, 3))
    return _summed(g_shared, shared), _summed(g_kernel, kernel)


def _summed(gradients: Tensor, tensor: Tensor) -> Tensor:
    """Gradients [l, ...] of a tensor, added up if all factors have the same one."""
    if gradients.dim() == tensor.dim():
        return gradients
    return gradients.sum(0) if len(gradients) > 1 else gradients[0]
