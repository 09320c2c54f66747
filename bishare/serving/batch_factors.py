"""The factors of a batch whose rows have different adapters, stacked row by row.

    y_i = x_i Wᵀ + (x_i A_iᵀ) B_iᵀ        for each row i, as two batched products for each weight

Rows of similar ranks are in the same stack, padded with zeros to the largest rank; rows of smaller ranks are in another
stack. A stack of consecutive rows is a slice of the batch, while other rows are gathered into a copy; so
:class:`pool.AdapterPool` sorts the rows. If all rows have the same adapter, its factors are stored once. The vectors
around a frozen pair (VeRA) are not multiplied into the pair: the rows with the same pair have a product in common.

Shapes: b rows of n tokens, m rows in a stack of rank r; x [b, n, in], A [m, r, in], Bᵀ [m, r, out], y [b, n, out].
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bishare.adapters.base import Adapter
from bishare.adapters.factors import Scaled
from bishare.errors import UserError
from bishare.ops.assembly import Blocks, assemble_into

PADDED, PADDED_GATHERED = 2, 8
"""Ranks of a stack differ by at most this factor. With rows to gather the factor is larger: a further product of small
ranks would take longer than the product of the zeros."""


class StackShape(NamedTuple):
    """The size of a stack."""

    ranks: Mapping[int, int]
    """Rank of each row of the stack, in order; 0 for a row without an adapter."""
    in_features: int
    out_features: int

    @property
    def rank(self) -> int:
        return max(self.ranks.values())

    @property
    def num_values(self) -> int:
        return len(self.ranks) * self.rank * (self.in_features + self.out_features)


def stack_shapes(ranks: Mapping[int, int], num_rows: int, in_features: int, out_features: int) -> list[StackShape]:
    """The stacks of a weight, from the ranks of the rows that have an adapter for the weight.

    Args:
        ranks: Rank by row.
        num_rows: Rows of the batch.
        in_features: Width of the weight.
        out_features: Height of the weight.
    """
    groups = _group_by_rank(ranks, PADDED)
    if not all(map(_is_consecutive, groups)):
        groups = _group_by_rank(ranks, PADDED_GATHERED)
    shapes = []
    for rows in groups:
        in_stack = dict.fromkeys(rows, 0)
        # Zeros for at most half of the rows cost less than gathering the rows of the stack.
        if 2 * len(rows) >= num_rows and not _is_consecutive(rows):
            in_stack = dict.fromkeys(range(num_rows), 0)
        for row in rows:
            in_stack[row] = ranks[row]
        shapes.append(StackShape(in_stack, in_features, out_features))
    return shapes


def _group_by_rank(ranks: Mapping[int, int], factor: float) -> list[list[int]]:
    """The rows in ascending order, grouped so that ranks in a group differ by at most this factor."""
    left, groups = dict(ranks), []
    while left:
        smallest = max(left.values()) / factor
        groups.append(sorted(row for row, rank in left.items() if rank >= smallest))
        for row in groups[-1]:
            del left[row]
    return groups


def _is_consecutive(rows: Sequence[int]) -> bool:
    return list(rows) == list(range(rows[0], rows[0] + len(rows)))


def _index(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """The index of rows in a batch: a slice, which needs no copy, if the rows are consecutive."""
    if _is_consecutive(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)


class Stack(NamedTuple):
    """The factors of a weight for rows of similar ranks."""

    A: Tensor  # [m, r, in], or [1, r, in] if all rows have the same adapter
    B: Tensor  # Bᵀ [m, r, out], or [1, r, out]; the scale is inside
    rows: slice | Tensor
    """The m rows of the batch; [m] int64 if the rows are not consecutive."""

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add the updates of the rows to y, in place."""
        if isinstance(self.rows, slice):
            self._add(y[self.rows], x[self.rows])
        else:
            y.index_copy_(0, self.rows, self._add(y[self.rows], x[self.rows]))

    def _add(self, y: Tensor, x: Tensor) -> Tensor:
        if len(self.A) < len(x):  # the same adapter for all rows: a product of matrices
            y.view(-1, y.shape[-1]).addmm_(torch.mm(x.reshape(-1, x.shape[-1]), self.A[0].T), self.B[0])
            return y
        # A in front: BLAS then reads A once for the single token of a decoding step, and is twice as fast.
        return y.baddbmm_(torch.bmm(self.A, x.mT).mT, self.B)


class Scales(NamedTuple):
    """The vectors around a frozen pair, for the m rows with the pair."""

    A: Tensor  # [r, in], fp32
    B: Tensor  # [out, r], fp32
    d: Tensor  # [m, 1, r]
    b: Tensor  # [m, 1, out]
    rows: Sequence[int]
    batch_index: slice | Tensor
    """The rows as an index of a batch."""

    @classmethod
    def of(cls, scaled: Scaled, rows: Sequence[int]) -> "Scales":
        """The vectors d [m, r] and b [m, out] of adapters, for m rows."""
        d, b = scaled.d.detach().unsqueeze(1), scaled.b.detach().unsqueeze(1)
        return cls(scaled.A, scaled.B, d, b, rows, _index(rows, d.device))

    def joined_with(self, more: "Scales") -> "Scales":
        """The vectors of the rows of both, for the same pair."""
        rows = [*self.rows, *more.rows]
        d, b = torch.cat((self.d, more.d)), torch.cat((self.b, more.b))
        return Scales(self.A, self.B, d, b, rows, _index(rows, d.device))

    def first_product(self, x: Tensor) -> Tensor:
        """x Aᵀ [m, n, r], equal for all weights that read the same x."""
        m, n = len(self.rows), x.shape[1]
        return (x[self.batch_index].to(self.A.dtype).reshape(m * n, -1) @ self.A.T).view(m, n, -1)

    def add_to(self, y: Tensor, product: Tensor) -> None:
        """Add the updates of the rows to y, in place, from the first product [m, n, r]."""
        m, n, r = product.shape
        h = (product * self.d).view(m * n, r)
        update = (self.B @ h.T).T.view(m, n, -1) * self.b
        if isinstance(self.batch_index, slice):
            y[self.batch_index].add_(update)
        else:
            y.index_add_(0, self.batch_index, update.to(y.dtype))


class BatchFactors:
    """The factors of a batch, for every weight that an adapter of the batch adapts.

    Args:
        num_rows: Rows of the batch.
        shapes: The stacks of each weight; if all rows have the same adapter, of row 0 alone.
        shared: Whether all rows have the same adapter.
        dtype: Type of the model's activations.
        device: Device of the model.
    """

    def __init__(
        self,
        num_rows: int,
        shapes: Mapping[str, Sequence[StackShape]],
        *,
        shared: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_rows, self.shared = num_rows, shared
        self._shapes = shapes
        self._stacks: dict[str, list[Stack]] = {}
        for name, of_weight in shapes.items():
            for shape in of_weight:
                A = torch.empty(len(shape.ranks), shape.rank, shape.in_features, dtype=dtype, device=device)
                B = torch.empty(len(shape.ranks), shape.rank, shape.out_features, dtype=dtype, device=device)
                for place, rank in enumerate(shape.ranks.values()):
                    if rank < A.shape[1]:  # assembly fills the first ``rank`` rows only
                        A[place, rank:], B[place, rank:] = 0, 0
                rows = slice(None) if shared else _index(list(shape.ranks), device)
                self._stacks.setdefault(name, []).append(Stack(A, B, rows))
        self._scales: dict[str, list[Scales]] = {}
        self._thread = threading.local()

    def assemble(self, adapter: Adapter, rows: Sequence[Sequence[int]]) -> None:
        """Assemble the factors of m adapters of the same layout.

        Args:
            adapter: The m adapters, as values with a leading dimension m (:meth:`compact_adapter.Layout.views_of`).
            rows: Rows of the batch for each of the m adapters.
        """
        numbers: list[int] = []  # the adapter of each row
        all_rows: list[int] = []
        for number, of_adapter in enumerate(rows):
            numbers += [number] * len(of_adapter)
            all_rows += of_adapter
        for slot in adapter.slots:
            scaled = adapter.scaled(slot)
            if scaled is not None:
                self._add_scales(slot.name, scaled, numbers, all_rows)
            elif self.shared:
                self._assemble_blocks(slot.name, adapter.blocks(slot), [0], [0])
            else:
                self._assemble_blocks(slot.name, adapter.blocks(slot), numbers, all_rows)

    def _assemble_blocks(self, name: str, blocks: Blocks, numbers: Sequence[int], rows: Sequence[int]) -> None:
        """Assemble the factors of adapters with these numbers for these rows, all in the same stack."""
        shape, stack = self._stack_of(name, rows[0])
        rank = shape.ranks[rows[0]]
        place_of = dict(zip(shape.ranks, range(len(shape.ranks)), strict=True))
        places = [place_of[row] for row in rows]
        distinct = len(set(numbers)) == len(numbers)
        for factor, of_side, scale, side in ((stack.A, blocks.A, 1.0, "A"), (stack.B, blocks.B, blocks.scale, "B")):
            if distinct and _is_consecutive(places):  # straight into the stack
                assemble_into(factor[places[0] : places[-1] + 1, :rank], of_side, scale=scale, side=side)
                continue
            # Each adapter once, then copied to all of its rows.
            assembled = factor.new_empty(max(numbers) + 1, rank, factor.shape[-1])
            assemble_into(assembled, of_side, scale=scale, side=side)
            index = torch.tensor(places, device=assembled.device)
            factor[:, :rank].index_copy_(0, index, assembled if distinct else assembled[numbers])

    def _stack_of(self, name: str, row: int) -> tuple[StackShape, Stack]:
        """The stack with a row's factors of a weight."""
        for shape, stack in zip(self._shapes[name], self._stacks[name], strict=True):
            if shape.ranks.get(row):
                return shape, stack
        raise AssertionError(f"row {row} has no factors of {name}")

    def _add_scales(self, name: str, scaled: Scaled, numbers: Sequence[int], rows: Sequence[int]) -> None:
        of_weight = self._scales.setdefault(name, [])
        added = Scales.of(scaled._replace(d=scaled.d[numbers], b=scaled.b[numbers]), rows)
        for place, scales in enumerate(of_weight):
            if scales.A.data_ptr() == scaled.A.data_ptr():  # the same frozen pair
                of_weight[place] = scales.joined_with(added)
                return
        of_weight.append(added)

    def add_update(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Add each row's update of the weight ``name`` to its output y, in place.

        Raises:
            UserError: The model was called with another number of rows.
        """
        stacks, scales = self._stacks.get(name, ()), self._scales.get(name, ())
        if (stacks or scales) and (len(x) != self.num_rows or x.dim() != 3):
            raise UserError(
                f"{name} was called with {list(x.shape)}, but adapters are named for {self.num_rows} rows; name one "
                "for each row (None for the base model)."
            )
        for stack in stacks:
            stack.add_to(y, x)
        for part in scales:
            part.add_to(y, self._first_product(part, x))
        return y

    def _first_product(self, scales: Scales, x: Tensor) -> Tensor:
        """x Aᵀ, kept in this thread for the next weight that reads the same, unchanged x."""
        if x.is_inference():  # has no version counter that would tell a change
            return scales.first_product(x)
        key = scales.A.data_ptr(), scales.A.shape, scales.rows, x._version
        last: tuple[weakref.ref[Tensor], Any, Tensor] | None = getattr(self._thread, "last", None)
        if last is None or last[0]() is not x or last[1] != key:
            self._thread.last = last = weakref.ref(x), key, scales.first_product(x)
        return last[2]
