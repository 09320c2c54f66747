"""Assembles low-rank factors from stored blocks, in one autograd node and in the type of the matrix products.

    rows of a factor = scale (K ⊗ S)        without a kernel K: scale S

All blocks are written into one buffer, so nothing but the stored parameters is kept for the backward pass. Factors of
the same layout, for example of one kind of weight in all layers, are written together, in no more operations than a
single factor. The plain path, :meth:`bishare.adapters.base.Adapter.parts`, uses torch's own operations; tests hold
both equal.

Shapes: stored matrix S [a, s], kernel K [b, k]; a factor is [r, n] (A, or B transposed), cut where k s exceeds n. A
leading dimension l stands for l factors at once.
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Block(NamedTuple):
    """Some rows of a factor: a stored matrix, a window of its columns, or its Kronecker product with a kernel."""

    shared: Tensor  # [a, s], or [s, a] on the B side
    kernel: Tensor | None = None  # [b, k], or [k, b] on the B side
    start: int = 0
    """First column of the window, where the matrix is wider than the factor."""
    per_rank: bool = False
    """Pair row i of the kernel with row i of the matrix only, instead of every row with every row."""


class Blocks(NamedTuple):
    """The factors of a slot before assembly."""

    A: Sequence[Block]
    B: Sequence[Block]
    """Stored as columns of B, without the scale."""
    scale: float


def rank(blocks: Sequence[Block]) -> int:
    """Number of rows of the A assembled from these blocks."""
    return sum(_num_rows(block.shared, block.kernel, block.per_rank) for block in blocks)


Rows = tuple[tuple[int, int], ...]
"""Some rows of a stack of blocks: the first row and the end of each run."""


def stack_blocks(factors: Sequence[Sequence[Block]]) -> tuple[list[Block], list[Rows]]:
    """Stack the blocks of several As, each shared block once.

    Weights with the same input share the windows of Slice Sharing and the random A of VeRA. The blocks of the first
    factor come first, in their order.

    Returns:
        The stack, and for each factor the rows to read from the assembled stack.
    """
    stack: list[Block] = []
    places: dict[tuple[Any, ...], tuple[int, int]] = {}
    rows_of_factors: list[Rows] = []
    end = 0
    for factor in factors:
        runs: list[tuple[int, int]] = []
        for block in factor:
            # Compared by identity: two parameters of equal values are still two blocks.
            key = id(block.shared), id(block.kernel), block.start, block.per_rank
            if key not in places:
                stack.append(block)
                places[key] = (end, end + rank([block]))
                end = places[key][1]
            first, last = places[key]
            if runs and runs[-1][1] == first:
                # A single run can be read as a view.
                first = runs.pop()[0]
            runs.append((first, last))
        rows_of_factors.append(tuple(runs))
    return stack, rows_of_factors


def assemble(blocks: Sequence[Block], *, length: int, dtype: torch.dtype, scale: float = 1.0, side: str) -> Tensor:
    """Stack the blocks along the rank, times ``scale``: A [r, length] for side ``A``, Bᵀ [r, length] for ``B``."""
    return assemble_each([blocks], length=length, dtype=dtype, scale=scale, side=side)[0]


def assemble_each(
    factors: Sequence[Sequence[Block]], *, length: int, dtype: torch.dtype, scale: float = 1.0, side: str
) -> tuple[Tensor, ...]:
    """Do as :func:`assemble` for several factors, whose blocks have the same shapes and options."""
    # A place is the matrix or the kernel of a block. A tensor shared by all factors enters the node once.
    places: list[tuple[Tensor | None, ...]] = []
    for blocks in zip(*factors, strict=True):
        for field in (0, 1):
            tensors = tuple(block[field] for block in blocks)
            is_common = all(tensor is tensors[0] for tensor in tensors)
            places.append(tensors[:1] if is_common else tensors)
    options = [(block.start, block.per_rank) for block in factors[0]]
    sizes = [len(tensors) for tensors in places]
    layout = _Layout(options, sizes, len(factors), length, dtype, scale, side == "B")
    return _Assemble.apply(layout, *chain(*places))  # type: ignore[no-any-return, no-untyped-call]


def assemble_into(out: Tensor, blocks: Sequence[Block], *, scale: float = 1.0, side: str) -> None:
    """Write the assembled factor over ``out`` [..., r, length], without a gradient."""
    _write(out, [_oriented(block, transposed=side == "B") for block in blocks], scale)


class _Layout(NamedTuple):
    options: list[tuple[int, bool]]
    sizes: list[int]
    """For the matrix and the kernel of each block: 1 if all factors share the tensor, else the number of factors."""
    num_factors: int
    length: int
    dtype: torch.dtype
    scale: float
    transposed: bool

    def blocks(self, tensors: Sequence[Tensor | None]) -> list[Block]:
        """The blocks made of these matrices and kernels, oriented as on the A side."""
        places = []
        for end, size in zip(accumulate(self.sizes), self.sizes, strict=True):
            places.append(_stacked(tensors[end - size : end]))
        found = []
        for shared, kernel, (start, per_rank) in zip(places[::2], places[1::2], self.options, strict=True):
            assert shared is not None
            found.append(_oriented(Block(shared, kernel, start, per_rank), transposed=self.transposed))
        return found


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
    def backward(ctx: Any, *factor_gradients: Tensor) -> tuple[Tensor | None, ...]:
        layout: _Layout = ctx.layout
        blocks = layout.blocks(ctx.saved_tensors)
        # [l, r, n]; a single gradient needs no copy.
        gradient = torch.stack(factor_gradients) if len(factor_gradients) > 1 else factor_gradients[0].unsqueeze(0)
        found: list[Tensor | None] = [None]  # of the layout
        first = 0
        for shared, kernel, start, per_rank in blocks:
            num_rows = _num_rows(shared, kernel, per_rank)
            rows = gradient[:, first : first + num_rows].to(shared.dtype)
            first += num_rows
            if layout.scale != 1.0:
                rows = rows * layout.scale
            for g in _block_gradients(rows, shared, kernel, start, per_rank):
                found += _as_stored(g, transposed=layout.transposed)
        return tuple(found)


def _stacked(tensors: Sequence[Any]) -> Any:
    """The tensors of a place as one [l, ...]; a tensor shared by all factors, or a missing kernel, stays as stored."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))


def _as_stored(gradient: Tensor | None, *, transposed: bool) -> Sequence[Tensor | None]:
    """The gradient of each tensor of a place, in the orientation of the parameters."""
    if gradient is None:
        return (None,)
    if transposed:
        gradient = gradient.mT.contiguous()
    if gradient.dim() == 2:  # all factors share the tensor
        return (gradient,)
    return gradient.unbind()


def _write(out: Tensor, blocks: Sequence[Block], scale: float) -> None:
    """Fill ``out`` [..., r, n] with the blocks, oriented as on the A side, top to bottom."""
    *leading, _, n = out.shape
    first = 0
    for shared, kernel, start, per_rank in blocks:
        num_rows = _num_rows(shared, kernel, per_rank)
        rows = out[..., first : first + num_rows, :]
        first += num_rows
        shared = shared.expand(*leading, *shared.shape[-2:])
        if kernel is None:
            torch.mul(shared[..., start : start + n], scale, out=rows)
            continue
        a, s = shared.shape[-2:]
        grid = (*leading, a) if per_rank else (*leading, kernel.shape[-2], a)
        if scale != 1.0:
            kernel = kernel * scale  # smaller than the product
        kernel, shared = _for_product(kernel, shared, per_rank)
        num_copies, rest = divmod(n, s)  # whole copies of the matrix, and columns of the copy that is cut
        if num_copies:
            whole = rows[..., : n - rest].view(*grid, num_copies, s)
            torch.mul(kernel[..., :num_copies, :], shared, out=whole)
        if rest:
            cut = rows[..., n - rest :].view(*grid, rest)
            torch.mul(kernel[..., num_copies, :], shared[..., 0, :rest], out=cut)


def _oriented(block: Block, *, transposed: bool) -> Block:
    """The block as on the A side, where rows are ranks: shared [..., a, s], kernel [..., b, k]."""
    if not transposed:
        return block
    kernel = block.kernel
    if kernel is not None:
        kernel = kernel.mT
    return block._replace(shared=block.shared.mT, kernel=kernel)


def _num_rows(shared: Tensor, kernel: Tensor | None, per_rank: bool) -> int:
    if kernel is None or per_rank:
        return shared.shape[-2]
    return shared.shape[-2] * kernel.shape[-2]


def _for_product(kernel: Tensor, shared: Tensor, per_rank: bool) -> tuple[Tensor, Tensor]:
    """Kernel and matrix shaped for broadcasting.

    Returns:
        [..., r, k, 1] and [..., r, 1, s] per rank, otherwise [..., b, 1, k, 1] and [..., 1, a, 1, s].
    """
    if per_rank:
        return kernel.unsqueeze(-1), shared.unsqueeze(-2)
    return kernel.unsqueeze(-2).unsqueeze(-1), shared.unsqueeze(-2).unsqueeze(-4)


def _block_gradients(
    rows: Tensor, shared: Tensor, kernel: Tensor | None, start: int, per_rank: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of a block's matrix and kernel, of their shapes, from the gradient of its rows [l, .., n]."""
    n, s = rows.shape[-1], shared.shape[-1]
    if kernel is None:
        g = _summed(rows, shared)
        if n != s:
            g = F.pad(g, (start, s - start - n))
        return g, None
    k = kernel.shape[-1]
    if n != k * s:
        rows = F.pad(rows, (0, k * s - n))  # columns that were cut have no gradient
    if per_rank:
        g = rows.view(*rows.shape[:-1], k, s)  # [l, r, k, s]
        g_shared = torch.matmul(kernel.unsqueeze(-2), g).squeeze(-2)
        return _summed(g_shared, shared), _summed(torch.matmul(g, shared.unsqueeze(-1)).squeeze(-1), kernel)
    b, a = kernel.shape[-2], shared.shape[-2]
    g = rows.reshape(len(rows), b, a, k, s)
    g_kernel = (g * shared[..., None, :, None, :]).sum((2, 4))
    if b == 1:
        # A product, which needs no buffer of the size of g.
        g_shared = torch.matmul(kernel.unsqueeze(-2), g[:, 0]).squeeze(-2)  # [l, 1, 1, k] [l, a, k, s]
    else:
        g_shared = (g * kernel[..., :, None, :, None]).sum((1, 3))
    return _summed(g_shared, shared), _summed(g_kernel, kernel)


def _summed(gradients: Tensor, tensor: Tensor) -> Tensor:
    """Gradients [l, ...] of a tensor, added up if all factors share the tensor."""
    if gradients.dim() == tensor.dim():
        return gradients
    return gradients.sum(0) if len(gradients) > 1 else gradients[0]
