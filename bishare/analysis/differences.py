"""How far two adapters of one base lie apart, weight by weight, and how far an unrelated one of the same spread would.

Shapes: updates [out, in], read from their factors only.
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
    """Between two updates."""

    effective: float
    """``|B_1 A_1 - B_2 A_2|``."""
    relative: float
    """The same over the mean of the two norms: 0 the same, 1.41 unrelated (of equal norm), 2 opposite."""
    cosine: float
    random_relative: float
    """If the second one were random factors of its spread."""
    random_cosine: float


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Between two adapters, on the weights that both adapt."""

    slots: Mapping[Slot, Difference]
    whole: Difference
    """Of all these weights as one long vector."""


def compare_adapters(first: Mapping[Slot, Factors], second: Mapping[Slot, Factors]) -> Differences:
    """Compare the updates of two adapters of one base.

    Raises:
        UserError: They adapt no weight in common, or one of other shapes.
    """
    theirs = {slot.name: (slot, update) for slot, update in second.items()}
    common = [slot for slot in first if slot.name in theirs]
    if not common:
        raise UserError(
            f"the adapters have no weight in common: one adapts {next(iter(first)).name}, the other "
            f"{next(iter(second)).name}; compare adapters of one base and the same targets."
        )
    generator = torch.Generator().manual_seed(0)
    inner, random = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    found = {}
    for slot in common:
        other, update = theirs[slot.name]
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
    """From the inner products [2, 2] of the pair, and of the first with random factors."""
    squares = inner.diagonal()
    return Difference(
        effective=float((squares.sum() - 2 * inner[0, 1]).clamp(min=0).sqrt()),
        relative=float(relative_distance(inner)[0, 1]),
        cosine=float(inner[0, 1] / squares.prod().sqrt()),
        random_relative=float(relative_distance(random)[0, 1]),
        random_cosine=float(random[0, 1] / random.diagonal().prod().sqrt()),
    )
