"""Distance and cosine of two adapters of the same base, weight by weight, beside those of an unrelated adapter.

The unrelated adapter is random, with the spread of the second adapter's updates.

Shapes: updates B A [out, in], computed from A [r, in] and B [out, r] alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.similarity.geometry import compare, relative_distance
from bishare.analysis.similarity.null import random_update
from bishare.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of two updates."""

    effective: float
    """``|B_1 A_1 - B_2 A_2|``."""
    relative: float
    """``effective`` over the mean of the two norms: 0 for equal, 1.41 for unrelated (of equal norm), 2 for opposite."""
    cosine: float
    random_relative: float
    """``relative`` between the first update and random factors with the spread of the second."""
    random_cosine: float
    """``cosine`` between the first update and random factors with the spread of the second."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Difference of two adapters, on the weights that both adapt."""

    slots: Mapping[Slot, Difference]
    whole: Difference
    """Difference of all common weights, concatenated to a vector."""


def compare_adapters(first: Mapping[Slot, Factors], second: Mapping[Slot, Factors]) -> Differences:
    """Compare the updates of two adapters of the same base.

    Raises:
        UserError: The adapters have no weight in common, or a common weight has different shapes.
    """
    # By name: a slot holds the sizes of the weight too, and sizes may differ.
    by_name = {slot.name: slot for slot in second}
    common = [slot for slot in first if slot.name in by_name]
    if not common:
        raise UserError(
            f"the adapters have no weight in common: one adapts {next(iter(first)).name}, the other "
            f"{next(iter(second)).name}; compare adapters of one base and the same targets."
        )
    generator = torch.Generator().manual_seed(0)
    # Inner products add up over weights, so their sums are those of the concatenated vectors.
    inner, random = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    found = {}
    for slot in common:
        other = by_name[slot.name]
        update = second[other]
        if (slot.in_features, slot.out_features) != (other.in_features, other.out_features):
            raise UserError(
                f"{slot.name} is {slot.out_features} x {slot.in_features} in one base and {other.out_features} x "
                f"{other.in_features} in the other; compare adapters of one base."
            )
        of_pair = compare([first[slot], update]).inner
        of_random = compare([first[slot], random_update(update, generator)]).inner
        found[slot] = _difference(of_pair, of_random)
        inner, random = inner + of_pair, random + of_random
    return Differences(slots=found, whole=_difference(inner, random))


def _difference(inner: torch.Tensor, random: torch.Tensor) -> Difference:
    """The difference, from the inner products [2, 2] of the pair and of the first update with random factors."""
    squares = inner.diagonal()
    return Difference(
        effective=float((squares.sum() - 2 * inner[0, 1]).clamp(min=0).sqrt()),
        relative=float(relative_distance(inner)[0, 1]),
        cosine=float(inner[0, 1] / squares.prod().sqrt()),
        random_relative=float(relative_distance(random)[0, 1]),
        random_cosine=float(random[0, 1] / random.diagonal().prod().sqrt()),
    )
