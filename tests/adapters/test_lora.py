"""LoRA: one pair of factors for each weight."""

import pytest
import torch

from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError

SLOTS = [Slot(name=f"{layer}.q", layer=layer, kind="q", in_features=12, out_features=8 + layer) for layer in range(2)]


def test_update_is_b_times_a_scaled() -> None:
    adapter = LoRAConfig(r=4, alpha=8).build(SLOTS)
    A, B = (adapter.groups()[name][1] for name in ("local.A", "local.B"))
    with torch.no_grad():
        B.normal_()
    factors = adapter.factors(SLOTS[1])
    torch.testing.assert_close(factors.A, A)
    torch.testing.assert_close(factors.B, 8 / 4 * B)
    assert (A.shape, B.shape) == ((4, 12), (9, 4))


def test_fresh_adapter_changes_nothing() -> None:
    adapter = LoRAConfig(r=4).build(SLOTS)
    for slot in SLOTS:
        A, B = adapter.factors(slot)
        assert A.any()
        assert not B.any()


def test_values_are_r_per_input_and_output() -> None:
    assert LoRAConfig(r=3).build(SLOTS).num_parameters() == 3 * (12 + 8) + 3 * (12 + 9)


def test_rank_must_be_positive() -> None:
    with pytest.raises(UserError, match="r is 0"):
        LoRAConfig(r=0)
