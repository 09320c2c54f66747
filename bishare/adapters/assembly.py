"""Assembles a factor from the blocks that it is stacked of, in one autograd node and in the type of the product.

    rows of a factor = scale (K ⊗ S), K absent for a block that is used as it is stored

Written block by block into one buffer, so nothing but the stored parameters is kept for the backward pass. The plain
path, :meth:`bishare.adapters.base.Adapter.parts`, says the same through torch's own operations; tests hold them equal.

Shapes: S [a, s], K [b, k]; a factor is [r, n] (A, or B transposed), cut where k s exceeds n. Without a gradient all
of them may have a leading dimension: several adapters at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def assemble(blocks: Sequence[Block], *, length: int, dtype: torch.dtype, scale: float = 1.0, side: str) -> Tensor:
    """The blocks stacked along the rank, times ``scale``: A [r, length] for side ``A``, Bᵀ [r, length] for ``B``."""
    layout = _Layout([(block.start, block.per_rank) for block in blocks], length, dtype, scale, side == "B")
    return _Assemble.apply(layout, *(tensor for block in blocks for tensor in block[:2]))  # type: ignore[no-any-return, no-untyped-call]


def assemble_into(out: Tensor, blocks: Sequence[Block], *, scale: float = 1.0, side: str) -> None:
    """The same written over ``out`` [..., r, length], without a gradient."""
    _write(out, [_oriented(block, transposed=side == "B") for block in blocks], scale)


class _Layout(NamedTuple):
    options: list[tuple[int, bool]]
    length: int
    dtype: torch.dtype
    scale: float
    transposed: bool

    def blocks(self, tensors: Sequence[Tensor | None]) -> list[Block]:
        """The blocks that these are the matrices and kernels of, as on the A side."""
        found = []
        for shared, kernel, (start, per_rank) in zip(tensors[::2], tensors[1::2], self.options, strict=True):
            assert shared is not None
            found.append(_oriented(Block(shared, kernel, start, per_rank), transposed=self.transposed))
        return found


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor | None) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(*tensors)
        blocks = layout.blocks(tensors)
        out = blocks[0].shared.new_empty(rank(blocks), layout.length, dtype=layout.dtype)
        _write(out, blocks, layout.scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        gradients: list[Tensor | None] = []
        first = 0
        for shared, kernel, start, per_rank in layout.blocks(ctx.saved_tensors):
            num_rows = _rows(shared, kernel, per_rank)
            rows = gradient[first : first + num_rows].to(shared.dtype)
            first += num_rows
            if layout.scale != 1.0:
                rows = rows * layout.scale
            g_shared, g_kernel = _block_gradients(rows, shared, kernel, start, per_rank)
            gradients += [g if g is None or not layout.transposed else g.T for g in (g_shared, g_kernel)]
        return None, *gradients


def _write(out: Tensor, blocks: Sequence[Block], scale: float) -> None:
    """Fill ``out`` [..., r, n] with the blocks, as on the A side, one below the other."""
    *several, _, n = out.shape
    first = 0
    for shared, kernel, start, per_rank in blocks:
        num_rows = _rows(shared, kernel, per_rank)
        rows = out[..., first : first + num_rows, :]
        first += num_rows
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
    """Gradients of a block's matrix and kernel from the gradient of its rows [.., n]."""
    n = rows.shape[1]
    if kernel is None:
        if n == shared.shape[1]:
            return rows, None
        padded = shared.new_zeros(shared.shape)
        padded[:, start : start + n] = rows
        return padded, None
    width = kernel.shape[1] * shared.shape[1]
    if n < width:  # the product was cut: what was cut has no gradient
        padded = rows.new_zeros(len(rows), width)
        padded[:, :n] = rows
        rows = padded
    if per_rank:
        g = rows.view(len(kernel), kernel.shape[1], shared.shape[1])  # [r, k, s]
        return torch.bmm(kernel.unsqueeze(1), g).squeeze(1), torch.bmm(g, shared.unsqueeze(2)).squeeze(2)
    g = rows.view(len(kernel), len(shared), kernel.shape[1], shared.shape[1])  # [b, a, k, s]
    g_kernel = (g * shared[None, :, None, :]).sum((1, 3))
    if len(kernel) == 1:
        return torch.matmul(kernel, g[0]).squeeze(1), g_kernel  # [1, k] [a, k, s]
    return (g * kernel[:, None, :, None]).sum((0, 2)), g_kernel
