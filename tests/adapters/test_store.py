"""Named factors: shapes, initial values, and groups of weights that share a factor."""

import math

import pytest
import torch

from bishare.adapters.factors import Slot
from bishare.adapters.store import Store, by_kind, kind_name
from bishare.errors import UserError


def slot(layer: int, kind: str, in_features: int = 6, out_features: int = 4) -> Slot:
    return Slot(
        name=f"layers.{layer}.{kind}", layer=layer, kind=kind, in_features=in_features, out_features=out_features
    )


def test_factors_have_their_shapes() -> None:
    store = Store(3, {"q": 6, "k": 8}, {"0-q": 4})
    assert {name: tuple(p.shape) for name, p in store.named_parameters()} == {
        "A.q": (3, 6),
        "A.k": (3, 8),
        "B.0-q": (4, 3),
    }


def test_same_name_is_the_same_factor() -> None:
    store = Store(2, {"all": 6}, {"0": 4, "1": 4})
    assert store.pair("all", "0").A is store.pair("all", "1").A
    assert store.pair("all", "0").B is not store.pair("all", "1").B


def test_fresh_update_is_zero() -> None:
    store = Store(2, {"all": 6}, {"0": 4})
    store.reset_parameters()
    A, B = store.pair("all", "0")
    assert not B.any()
    assert 0 < A.abs().max() <= 1 / math.sqrt(6)  # the bound of Kaiming's uniform distribution with a = sqrt(5)


def test_every_a_is_drawn_once() -> None:
    store = Store(2, {"q": 6, "k": 6}, {})
    torch.manual_seed(0)
    store.reset_parameters()
    torch.manual_seed(0)
    for A in store.A.values():
        assert torch.equal(A, torch.nn.init.kaiming_uniform_(torch.empty(2, 6), a=math.sqrt(5)))


def test_kind_loses_its_dots() -> None:
    assert kind_name(slot(0, "mlp.experts.up")) == "mlp_experts_up"


def test_kinds_are_in_layer_order() -> None:
    kinds = by_kind([slot(2, "q"), slot(0, "q"), slot(1, "k", 8)])
    assert {kind: [s.layer for s in slots] for kind, slots in kinds.items()} == {"q": [0, 2], "k": [1]}


def test_shapes_of_a_kind_must_agree() -> None:
    with pytest.raises(UserError, match="q is 4 x 6 in layer 0 and 4 x 8 in layer 1"):
        by_kind([slot(1, "q", 8), slot(0, "q")])
