"""The factors of a batch whose rows have different adapters, stacked row by row.

    y_i = x_i Wᵀ + (x_i A_iᵀ) B_iᵀ        for each row i, as two batched products for each weight

Rows of like ranks stand in one stack, padded with zeros to the largest of them; rows of smaller ranks are in another
one. Nothing is gathered for rows that follow each other in the batch, so :class:`pool.AdapterPool` sorts them. If all
rows have one adapter, it is stored once. Vectors around a frozen pair (VeRA) are not multiplied into it: the rows that
share the pair have their products with it in common.

Shapes: b rows of n tokens, m of them in a stack of rank r; x [b, n, in], A [m, r, in], Bᵀ [m, r, out], y [b, n, out].
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bishare.adapters.base import Adapter
from bishare.adapters.factors import Scaled
from bishare.errors import UserError
from bishare.ops.assembly import Blocks, assemble_into

PADDED, PADDED_GATHERED = 2, 8
"""Ranks that differ by at most this factor stand in one stack: where rows have to be gathered, one more product of
small ranks costs more time than its zeros do."""


class Room(NamedTuple):
    """What one stack takes."""

    ranks: Mapping[int, int]
    """Rank of each of its rows, in order; 0 for a row without an adapter."""
    in_features: int
    out_features: int

    @property
    def rank(self) -> int:
        return max(self.ranks.values())

    @property
    def num_values(self) -> int:
        return len(self.ranks) * self.rank * (self.in_features + self.out_features)


def rooms(ranks: Mapping[int, int], num_rows: int, in_features: int, out_features: int) -> list[Room]:
    """The stacks of one weight, from the ranks of the rows that have an adapter for it.

    A stack of at least half of the rows has the others too, as zeros, if they would have to be gathered otherwise.
    """
    divided = _divided(ranks, PADDED)
    if not all(map(_follow_each_other, divided)):
        divided = _divided(ranks, PADDED_GATHERED)
    found = []
    for rows in divided:
        fill = 2 * len(rows) >= num_rows and not _follow_each_other(rows)
        stacked = {row: ranks.get(row, 0) if row in rows else 0 for row in (range(num_rows) if fill else rows)}
        found.append(Room(stacked, in_features, out_features))
    return found


def _divided(ranks: Mapping[int, int], factor: float) -> list[list[int]]:
    """The rows in ascending order, by ranks that differ by at most this factor."""
    left, found = dict(ranks), []
    while left:
        least = max(left.values()) / factor
        found.append(sorted(row for row, rank in left.items() if rank >= least))
        for row in found[-1]:
            del left[row]
    return found


def _follow_each_other(rows: Sequence[int]) -> bool:
    return list(rows) == list(range(rows[0], rows[0] + len(rows)))


def _chosen(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """What chooses these rows of a batch, without a copy if they follow each other."""
    if _follow_each_other(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)


class Stack(NamedTuple):
    """One weight's factors for rows of like ranks."""

    A: Tensor  # [m, r, in], or [1, r, in] if all rows have the same adapter
    B: Tensor  # Bᵀ [m, r, out], or [1, r, out]; the scale is inside
    rows: slice | Tensor
    """Which rows they are for, [m] int64 if they do not follow each other."""

    def add_to(self, y: Tensor, x: Tensor) -> None:
        if isinstance(self.rows, slice):
            self._add(y[self.rows], x[self.rows])
        else:
            y.index_copy_(0, self.rows, self._add(y[self.rows], x[self.rows]))

    def _add(self, y: Tensor, x: Tensor) -> Tensor:
        if len(self.A) < len(x):  # the same adapter for all rows
            y.view(-1, y.shape[-1]).addmm_(torch.mm(x.reshape(-1, x.shape[-1]), self.A[0].T), self.B[0])
            return y
        # A in front: for the one token of a decoding step BLAS then reads its rows once, and is twice as fast.
        return y.baddbmm_(torch.bmm(self.A, x.mT).mT, self.B)


class Scales(NamedTuple):
    """The vectors around one frozen pair, for the m rows that have some."""

    A: Tensor  # [r, in], fp32
    B: Tensor  # [out, r], fp32
    d: Tensor  # [m, 1, r]
    b: Tensor  # [m, 1, out]
    rows: Sequence[int]
    chosen: slice | Tensor
    """The same rows, to be taken from a batch."""

    @classmethod
    def of(cls, scaled: Scaled, rows: Sequence[int]) -> "Scales":
        """The vectors of adapters [m, r], [m, out] for these m rows."""
        d, b = scaled.d.detach().unsqueeze(1), scaled.b.detach().unsqueeze(1)
        return cls(scaled.A, scaled.B, d, b, rows, _chosen(rows, d.device))

    def joined_by(self, other: "Scales") -> "Scales":
        """With more rows."""
        rows = [*self.rows, *other.rows]
        d, b = torch.cat((self.d, other.d)), torch.cat((self.b, other.b))
        return Scales(self.A, self.B, d, b, rows, _chosen(rows, d.device))

    def first_product(self, x: Tensor) -> Tensor:
        """x Aᵀ [m, n, r], which the weights that read one x have in common."""
        m, n = len(self.rows), x.shape[1]
        return (x[self.chosen].to(self.A.dtype).reshape(m * n, -1) @ self.A.T).view(m, n, -1)

    def add_to(self, y: Tensor, product: Tensor) -> None:
        m, n, r = product.shape
        h = (product * self.d).view(m * n, r)
        update = (self.B @ h.T).T.view(m, n, -1) * self.b
        if isinstance(self.chosen, slice):
            y[self.chosen].add_(update)
        else:
            y.index_add_(0, self.chosen, update.to(y.dtype))


def _places(room: Room, rows: Sequence[int]) -> list[int]:
    """Where these rows stand in the room's stack."""
    place_of = {row: place for place, row in enumerate(room.ranks)}
    return [place_of[row] for row in rows]


class BatchFactors:
    """The factors of one batch, for every weight that any of its adapters adapts.

    Args:
        num_rows: Rows of the batch.
        rooms: The stacks of each weight; if all rows have one adapter, row 0 stands for all.
        shared: Whether they do.
        dtype: Of the model's activations.
        device: Where the model is.
    """

    def __init__(
        self,
        num_rows: int,
        rooms: Mapping[str, Sequence[Room]],
        *,
        shared: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_rows, self.shared = num_rows, shared
        self._rooms = rooms
        self._stacks: dict[str, list[Stack]] = {}
        for name, of_weight in rooms.items():
            for room in of_weight:
                A = torch.empty(len(room.ranks), room.rank, room.in_features, dtype=dtype, device=device)
                B = torch.empty(len(room.ranks), room.rank, room.out_features, dtype=dtype, device=device)
                for place, rank in enumerate(room.ranks.values()):
                    if rank < A.shape[1]:
                        A[place, rank:], B[place, rank:] = 0, 0
                rows = slice(None) if shared else _chosen(list(room.ranks), device)
                self._stacks.setdefault(name, []).append(Stack(A, B, rows))
        self._scales: dict[str, list[Scales]] = {}
        self._thread = threading.local()

    def put(self, adapter: Adapter, rows: Sequence[Sequence[int]]) -> None:
        """Assemble the factors of several adapters of one form.

        Args:
            adapter: All of them, their values with a leading dimension m (:meth:`compact.Layout.holding`).
            rows: The rows of each of the m.
        """
        numbers = [number for number, of_adapter in enumerate(rows) for _ in of_adapter]
        chosen = list(chain.from_iterable(rows))
        for slot in adapter.slots:
            if (scaled := adapter.scaled(slot)) is None:
                self._put_blocks(slot.name, adapter.blocks(slot), *(([0], [0]) if self.shared else (numbers, chosen)))
            else:
                self._put_scales(slot.name, scaled, numbers, chosen)

    def _put_blocks(self, name: str, blocks: Blocks, numbers: Sequence[int], rows: Sequence[int]) -> None:
        """Assemble the factors of the adapters with these numbers for these rows, which stand in one stack."""
        room, stack = next(
            (room, stack)
            for room, stack in zip(self._rooms[name], self._stacks[name], strict=True)
            if room.ranks.get(rows[0])
        )
        rank = room.ranks[rows[0]]
        sides = ((stack.A, blocks.A, 1.0, "A"), (stack.B, blocks.B, blocks.scale, "B"))
        places = _places(room, rows)
        own = len(set(numbers)) == len(numbers)
        for factor, of_side, scale, side in sides:
            if own and _follow_each_other(places):
                assemble_into(factor[places[0] : places[-1] + 1, :rank], of_side, scale=scale, side=side)
                continue
            made = factor.new_empty(max(numbers) + 1, rank, factor.shape[-1])
            assemble_into(made, of_side, scale=scale, side=side)
            factor[:, :rank].index_copy_(0, torch.tensor(places, device=made.device), made if own else made[numbers])

    def _put_scales(self, name: str, scaled: Scaled, numbers: Sequence[int], rows: Sequence[int]) -> None:
        of_weight = self._scales.setdefault(name, [])
        added = Scales.of(scaled._replace(d=scaled.d[numbers], b=scaled.b[numbers]), rows)
        for place, scales in enumerate(of_weight):
            if scales.A.data_ptr() == scaled.A.data_ptr():
                of_weight[place] = scales.joined_by(added)
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
        """x Aᵀ; that of the weight before if it read the same x, unchanged, in this thread."""
        if x.is_inference():  # does not tell whether it was changed
            return scales.first_product(x)
        of = scales.A.data_ptr(), scales.A.shape, scales.rows, x._version
        last: tuple[weakref.ref[Tensor], Any, Tensor] | None = getattr(self._thread, "last", None)
        if last is None or last[0]() is not x or last[1] != of:
            self._thread.last = last = weakref.ref(x), of, scales.first_product(x)
        return last[2]
