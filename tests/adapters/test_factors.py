"""The pair of a weight, sums of pairs, and the weight itself."""

import dataclasses

import pytest
import torch

from bishare.adapters.factors import Factors, Slot, stack


def pair(r: int) -> Factors:
    generator = torch.Generator().manual_seed(r)
    return Factors(torch.randn(r, 5, generator=generator), torch.randn(4, r, generator=generator))


def slot(kind: str) -> Slot:
    return Slot(name=f"model.layers.3.{kind}", layer=3, kind=kind, in_features=5, out_features=4)


def test_rank_is_the_rows_of_a() -> None:
    assert pair(3).rank == 3


def test_stacked_pairs_are_the_sum() -> None:
    one, two = pair(1), pair(2)
    stacked = stack([one, two])
    assert stacked.rank == 3
    torch.testing.assert_close(stacked.B @ stacked.A, one.B @ one.A + two.B @ two.A)


def test_a_single_pair_is_not_copied() -> None:
    one = pair(2)
    assert stack([one]) is one


def test_key_holds_layer_and_kind() -> None:
    assert slot("q").key == "3-q"


def test_key_has_no_dots() -> None:
    """A parameter dictionary takes no dots in its keys."""
    assert slot("mlp.experts.0.up").key == "3-mlp_experts_0_up"


def test_slots_compare_by_value() -> None:
    assert slot("q") == slot("q")
    assert slot("q") != dataclasses.replace(slot("q"), in_features=6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        slot("q").layer = 0  # type: ignore[misc]  # what is tested
