"""Merging in Bi-Share LoRA: the matrices that are compared, and the groups that exist."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.bishare import BiShare, BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.merging import distances
from bishare.adapters.transforms import Kronecker
from bishare.errors import UserError
from bishare.models.attach import attach
from tests.adapters.merging_config import merging
from tests.randomised import randomise


@pytest.mark.parametrize("kernel", ["shared", "per_rank", "1_r", "r_2", "2_r"])
def test_kronecker_score_ignores_scales_that_cancel(tiny_model: Callable[..., PreTrainedModel], kernel: str) -> None:
    model = tiny_model("llama")
    adapter = attach(model, merging("kronecker", kernel=kernel, r_intra=4))
    assert isinstance(adapter, BiShare)
    randomise(adapter)
    group = adapter.mergeable_groups()["intra"]
    group.observe(group.sources())
    updates = {slot: adapter.factors(slot) for slot in adapter.slots}
    scores = distances(torch.stack(group.compared(group.sources())), "l2")
    raw = distances(torch.stack([p.detach() for p in group.members()]), "l2")
    means = group.mean.clone()

    with torch.no_grad():
        for i, slot in enumerate(adapter.slots):
            fit = adapter.intra_fit[slot.key]
            assert isinstance(fit, Kronecker)
            fit.B *= 3.0 + slot.layer  # into every kernel of a layer, out of its B
            fit.A *= 1.0 + i  # and from one kernel of a weight into the other
            fit.B /= 1.0 + i
        for layer in range(3):
            adapter.intra.B[str(layer)] /= 3.0 + layer
    group.observe(group.sources())

    for slot, (A, B) in updates.items():
        now = adapter.factors(slot)
        torch.testing.assert_close(now.B @ now.A, B @ A, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        distances(torch.stack(group.compared(group.sources())), "l2"), scores, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(group.mean, means, rtol=1e-4, atol=1e-5)
    assert (distances(torch.stack([p.detach() for p in group.members()]), "l2") - raw).abs().max() > 0.1


def test_kronecker_compares_matrices_of_the_updates_size(tiny_model: Callable[..., PreTrainedModel]) -> None:
    adapter = attach(
        tiny_model("llama"), merging("kronecker", size=8, r_local=0, r_inter=0, scale=1.0)
    )  # 8 divides all
    randomise(adapter)
    group = adapter.mergeable_groups()["intra"]

    for layer, compared in enumerate(group.compared(group.sources())):
        slots = [slot for slot in adapter.slots if slot.layer == layer]
        squares = [(adapter.factors(slot).B @ adapter.factors(slot).A).square().sum() for slot in slots]
        size = (compared @ group.shared_a()).norm()
        torch.testing.assert_close(size, (sum(squares) / len(slots)).sqrt())


@pytest.mark.parametrize("transform", ["slice", "kronecker"])
def test_merging_all_intra_bs_makes_a_second_inter(tiny_model: Callable[..., PreTrainedModel], transform: str) -> None:
    adapter = attach(tiny_model("llama"), merging(transform))
    randomise(adapter)
    group = adapter.mergeable_groups()["intra"]
    group.tie(0, 1)
    group.tie(1, 2)

    second = attach(tiny_model("llama"), merging(transform, merging=False, r_local=0, r_intra=0, r_inter=3))
    first = attach(tiny_model("llama"), merging(transform, r_intra=0))
    assert isinstance(adapter, BiShare)
    assert isinstance(second, BiShare)
    with torch.no_grad():
        second.inter.A["all"].copy_(adapter.intra.A["all"])
        second.inter.B["all"].copy_(adapter.intra.B["2"])
    second.inter_fit.load_state_dict(adapter.intra_fit.state_dict())

    for slot in adapter.slots:
        for mine, other in zip(adapter.parts(slot)["intra"], second.parts(slot)["inter"], strict=True):
            assert torch.equal(mine, other)
    assert adapter.num_parameters() == first.num_parameters() + second.num_parameters()


def test_an_a_per_layer_has_no_merges(tiny_model: Callable[..., PreTrainedModel]) -> None:
    for config in (LoRAConfig(r=2), BiShareConfig(transform="slice", r_local=1, r_intra=1, r_inter=1)):
        adapter = attach(tiny_model("llama"), config)
        assert not config.mergeable
        assert adapter.mergeable_groups() == {}
        assert adapter.dead_parameters() == []
        assert list(adapter.buffers()) == []


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"transform": "slice", "r_local": 0, "r_intra": 0}, "r_local or r_intra"),
        ({"transform": "gate", "r_local": 0}, "r_local"),
    ],
)
def test_merging_without_groups_is_refused(options: dict[str, object], needed: str) -> None:
    with pytest.raises(UserError, match=f"give {needed} a positive rank"):
        BiShareConfig(merging=True, **options)
