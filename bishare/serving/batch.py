"""The factors of a batch whose rows have different adapters, stacked row by row.

    y_i = x_i Wᵀ + (x_i A_iᵀ) B_iᵀ        for each row i, as two batched products for each weight

Ranks are padded with zeros to the largest one that the batch has for the weight; a row without an adapter is all
zeros. If all rows have one adapter, it is stored once. Vectors around a frozen pair (VeRA) are not multiplied into
it: the rows that share the pair have their products with it in common.

Shapes: b rows of n tokens; x [b, n, in], A [b, R, in], Bᵀ [b, R, out], y [b, n, out].
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bishare.adapters.assembly import assemble
from bishare.adapters.base import Adapter, Scaled, Slot
from bishare.errors import UserError


class Pair(NamedTuple):
    """One weight's factors for all rows."""

    A: Tensor  # [b, R, in], or [1, R, in] if all rows have the same adapter
    B: Tensor  # Bᵀ [b, R, out], or [1, R, out]; the scale is inside


class Shape(NamedTuple):
    """Of a pair that is still to be made."""

    rows: int
    rank: int
    in_features: int
    out_features: int

    @property
    def num_values(self) -> int:
        return self.rows * self.rank * (self.in_features + self.out_features)


class Scales(NamedTuple):
    """The vectors around one frozen pair, for the m rows that have some."""

    A: Tensor  # [r, in], fp32
    B: Tensor  # [out, r], fp32
    d: Tensor  # [m, 1, r]
    b: Tensor  # [m, 1, out]
    rows: Tensor  # [m], int64

    def joined_by(self, d: Tensor, b: Tensor, rows: Tensor) -> "Scales":
        """With more rows."""
        return Scales(self.A, self.B, torch.cat((self.d, d)), torch.cat((self.b, b)), torch.cat((self.rows, rows)))

    def add_to(self, y: Tensor, x: Tensor) -> None:
        h = (x[self.rows].to(self.A.dtype) @ self.A.T) * self.d
        y.index_add_(0, self.rows, ((h @ self.B.T) * self.b).to(y.dtype))


class BatchFactors:
    """The factors of one batch, for every weight that any of its adapters adapts.

    Args:
        num_rows: Rows of the batch.
        shapes: Of the pairs, by the name of the weight.
        dtype: Of the model's activations.
        device: Where the model is.
    """

    def __init__(self, num_rows: int, shapes: Mapping[str, Shape], *, dtype: torch.dtype, device: torch.device) -> None:
        self.num_rows = num_rows
        self._pairs = {
            name: Pair(
                torch.zeros(rows, rank, n, dtype=dtype, device=device),
                torch.zeros(rows, rank, m, dtype=dtype, device=device),
            )
            for name, (rows, rank, n, m) in shapes.items()
        }
        self._scales: dict[str, list[Scales]] = {}

    def put(self, adapter: Adapter, slots: Sequence[Slot], rows: Sequence[int]) -> None:
        """Assemble the factors of ``adapter`` for these rows."""
        for slot in slots:
            if (scaled := adapter.scaled(slot)) is not None:
                self._put_scales(slot.name, scaled, rows)
                continue
            pair, blocks = self._pairs[slot.name], adapter.blocks(slot)
            A = assemble(blocks.A, length=slot.in_features, dtype=pair.A.dtype, side="A")
            B = assemble(blocks.B, length=slot.out_features, dtype=pair.B.dtype, scale=blocks.scale, side="B")
            for row in rows if len(pair.A) > 1 else (0,):
                pair.A[row, : len(A)].copy_(A)
                pair.B[row, : len(B)].copy_(B)

    def _put_scales(self, name: str, scaled: Scaled, rows: Sequence[int]) -> None:
        of_weight = self._scales.setdefault(name, [])
        d, b = (values.detach().repeat(len(rows), 1, 1) for values in (scaled.d, scaled.b))
        index = torch.tensor(rows, device=d.device)
        for place, scales in enumerate(of_weight):
            if scales.A.data_ptr() == scaled.A.data_ptr():
                of_weight[place] = scales.joined_by(d, b, index)
                return
        of_weight.append(Scales(scaled.A, scaled.B, d, b, index))

    def add_update(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Add each row's update of the weight ``name`` to its output y, in place.

        Raises:
            UserError: The model was called with another number of rows.
        """
        pair, scales = self._pairs.get(name), self._scales.get(name, ())
        if (pair or scales) and (len(x) != self.num_rows or x.dim() != 3):
            raise UserError(
                f"{name} was called with {list(x.shape)}, but adapters are named for {self.num_rows} rows; name one "
                "for each row (None for the base model)."
            )
        if pair is not None and len(pair.A) == 1:
            y.view(-1, y.shape[-1]).addmm_(torch.mm(x.reshape(-1, x.shape[-1]), pair.A[0].T), pair.B[0])
        elif pair is not None:
            # A in front: for the one token of a decoding step BLAS then reads its rows once, and is twice as fast.
            y.baddbmm_(torch.bmm(pair.A, x.mT).mT, pair.B)
        for of_pair in scales:
            of_pair.add_to(y, x)
        return y
