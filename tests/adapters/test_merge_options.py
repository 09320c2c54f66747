"""How far to merge and when: the published schedule, the three goals, and wrong options."""

import inspect
from typing import Any

import pytest
import torch

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import Adapter
from bishare.adapters.counts import num_lora_values
from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.merge_options import (
    MergeOptions,
    Size,
    event_steps,
    merges_by_count,
    merges_to_count,
    merges_to_groups,
)
from bishare.errors import UserError
from callbacks import AdaptiveMerging

SLOTS = [
    Slot(name=f"layers.{layer}.{kind}", layer=layer, kind=kind, in_features=8, out_features=m)
    for layer in range(4)
    for kind, m in [("q", 8), ("k", 4)]
]


def aslora() -> Adapter:
    return ASLoRAConfig(r=2).build(SLOTS)


def test_callback_takes_the_same_options() -> None:
    assert inspect.signature(AdaptiveMerging) == inspect.signature(MergeOptions)


def test_every_group_takes_num_merges() -> None:
    options = MergeOptions(10, 5, num_merges=2)
    assert options.merges_of(aslora()) == {"local.q": 2, "local.k": 2}
    assert options.events_of(aslora()) == {"local.q": [15, 20], "local.k": [15, 20]}


def test_every_group_keeps_num_groups() -> None:
    assert MergeOptions(0, 1, target_groups=3).merges_of(aslora()) == {"local.q": 1, "local.k": 1}


def test_fraction_is_of_lora_on_equal_weights() -> None:
    adapter = aslora()
    planned = MergeOptions(0, 1, target_fraction=0.5, lora_rank=2).merges_of(adapter)
    for name, group in adapter.mergeable_groups().items():
        for _ in range(planned[name]):
            group.tie(*group.live[:2])
    assert 0 < adapter.num_parameters() <= num_lora_values(SLOTS, 2) // 2


def test_plan_stays_the_same_while_merging() -> None:
    adapter, options = aslora(), MergeOptions(0, 1, target_fraction=0.5, lora_rank=2)
    before = options.merges_of(adapter)
    adapter.mergeable_groups()["local.q"].tie(0, 1)
    assert options.merges_of(adapter) == before


def test_plan_needs_no_values() -> None:
    with torch.device("meta"):
        assert MergeOptions(0, 1, target_groups=1).merges_of(aslora()) == {"local.q": 3, "local.k": 3}


def test_adapters_without_groups_are_refused() -> None:
    with pytest.raises(UserError, match="lora as configured has nothing to merge"):
        MergeOptions(0, 1, num_merges=1).merges_of(LoRAConfig().build(SLOTS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of num_merges, target_groups, target_fraction; given: none"),
        ({"num_merges": 1, "target_groups": 2}, "given: num_merges, target_groups"),
        ({"num_merges": 0}, "num_merges is 0; it must be at least 1"),
        ({"target_groups": 0}, "target_groups is 0"),
        ({"target_fraction": 1.5}, "target_fraction is 1.5; it must be between 0 and 1"),
        ({"num_merges": 1, "interval": 0}, "interval is 0"),
        ({"num_merges": 1, "start": -1}, "start is -1"),
        ({"num_merges": 1, "lora_rank": 0}, "lora_rank is 0"),
        ({"num_merges": 1, "order": "hierarchical", "score": "current"}, "hierarchical compares running means"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MergeOptions(**({"start": 1, "interval": 2} | options))


def test_published_settings_merge_from_560_to_2000() -> None:
    steps = event_steps(start=320, interval=240, num_merges=7, schedule="fixed")

    assert steps == [560, 800, 1040, 1280, 1520, 1760, 2000]
    assert steps == [t for t in range(1, 6900) if t > 320 and (t - 320) % 240 == 0][:7]


def test_cubic_schedule_is_dense_at_first() -> None:
    steps = event_steps(start=320, interval=240, num_merges=7, schedule="cubic")

    gaps = [b - a for a, b in zip([320, *steps], steps, strict=False)]
    assert steps[-1] == 2000
    assert gaps == sorted(gaps)
    for k, step in enumerate(steps, 1):
        share = (step - 320) / (7 * 240)
        earlier = (step - 1 - 320) / (7 * 240)
        assert 7 * (1 - (1 - earlier) ** 3) < k <= 7 * (1 - (1 - share) ** 3) + 1e-9


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_cubic_schedule_merges_once_per_step(interval: int) -> None:
    steps = event_steps(start=0, interval=interval, num_merges=30, schedule="cubic")

    assert len(set(steps)) == 30
    assert steps == sorted(steps)
    assert steps[0] >= 1
    assert steps[-1] == 30 * interval


SIZES = {"local.q": Size(4, 100), "intra": Size(3, 10)}


def test_groups_have_equally_many_merges() -> None:
    assert merges_by_count(SIZES, 2) == {"local.q": 2, "intra": 2}
    with pytest.raises(UserError, match=r"num_merges is 3, but intra has 3 layers"):
        merges_by_count(SIZES, 3)


def test_merges_to_a_number_of_groups() -> None:
    assert merges_to_groups(SIZES, 3) == {"local.q": 1, "intra": 0}


def test_groups_merge_in_turns_towards_a_count() -> None:
    assert merges_to_count(SIZES, live=1000, target=1000) == {"local.q": 0, "intra": 0}
    assert merges_to_count(SIZES, live=1000, target=900) == {"local.q": 1, "intra": 0}
    assert merges_to_count(SIZES, live=1000, target=899) == {"local.q": 1, "intra": 1}
    assert merges_to_count(SIZES, live=1000, target=680) == {"local.q": 3, "intra": 2}
    with pytest.raises(UserError, match=r"asks for 679 parameters, but merging all layers leaves 680"):
        merges_to_count(SIZES, live=1000, target=679)
