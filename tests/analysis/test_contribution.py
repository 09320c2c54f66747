"""Levels are switched off one by one, and the adapter is afterwards what it was."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.analysis.contribution import level_losses, levels_of, norm_shares, num_passes, switched_off
from bishare.models.attach import attach, merge_and_remove
from tests.randomised import randomise


@torch.no_grad()
def loss_of(model: PreTrainedModel, tokens: Tensor) -> float:
    return float(model(input_ids=tokens, labels=tokens).loss)


@pytest.mark.parametrize("transform", ["slice", "gate", "kronecker"])
def test_switched_off_level_is_zero(
    tiny_model: Callable[..., PreTrainedModel], token_ids: Tensor, transform: str
) -> None:
    model, zeroed = tiny_model("llama"), tiny_model("llama")
    config = BiShareConfig(transform=transform, size=8)
    randomise(attach(model, config))
    adapter = attach(zeroed, config)
    randomise(adapter)
    with torch.no_grad():
        for B in adapter.groups()["intra.B"]:
            B.zero_()
    before = loss_of(model, token_ids)
    with switched_off(model.bishare, ["intra"]):
        assert loss_of(model, token_ids) == pytest.approx(loss_of(zeroed, token_ids), rel=1e-5)
    assert loss_of(model, token_ids) == before


def test_losses_run_from_base_to_whole_adapter(tiny_model: Callable[..., PreTrainedModel], token_ids: Tensor) -> None:
    model, base = tiny_model("llama"), tiny_model("llama")
    adapter = attach(model, BiShareConfig(size=8))
    randomise(adapter)
    passes: list[None] = []

    def loss() -> float:
        passes.append(None)
        return loss_of(model, token_ids)

    losses = level_losses(adapter, loss)
    assert losses.none == pytest.approx(loss_of(base, token_ids), rel=1e-5)
    assert losses.all == loss_of(model, token_ids)
    assert list(losses.without) == list(losses.only) == levels_of(adapter) == ["local", "intra", "inter"]
    assert len({losses.all, losses.none, *losses.without.values(), *losses.only.values()}) == 8
    assert len(passes) == num_passes(adapter) == 8
    merge_and_remove(model)
    assert losses.all == pytest.approx(loss_of(model, token_ids), rel=1e-4)


def test_one_level_takes_two_passes(tiny_model: Callable[..., PreTrainedModel], token_ids: Tensor) -> None:
    model = tiny_model("llama")
    adapter = attach(model, LoRAConfig(r=2))
    randomise(adapter)
    losses = level_losses(adapter, lambda: loss_of(model, token_ids))
    assert (losses.without, losses.only) == ({"local": losses.none}, {"local": losses.all})
    assert num_passes(adapter) == 2


def test_norm_shares_sum_to_one(tiny_model: Callable[..., PreTrainedModel]) -> None:
    adapter = attach(tiny_model("llama"), BiShareConfig(size=8))
    fresh = norm_shares(adapter)
    assert {share for slots in fresh.values() for share in slots.values()} == {0.0}, "B is zero before training"
    randomise(adapter)
    shares = norm_shares(adapter)
    for slot in adapter.slots:
        norms = {level: torch.linalg.matrix_norm(B @ A).item() for level, (A, B) in adapter.parts(slot).items()}
        assert sum(shares[level][slot] for level in norms) == pytest.approx(1.0)
        assert shares["inter"][slot] == pytest.approx(norms["inter"] / sum(norms.values()))
