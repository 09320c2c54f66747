import math

import pytest
import torch

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.factors import Factors, Slot, stack
from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError


def test_stacked_factors_sum_the_updates() -> None:
    parts = [Factors(torch.randn(r, 7).double(), torch.randn(5, r).double()) for r in (2, 0, 3)]

    stacked = stack(parts)

    assert stacked.rank == 5
    torch.testing.assert_close(stacked.B @ stacked.A, sum(p.B @ p.A for p in parts), rtol=0, atol=1e-12)


def test_scale_is_two_or_follows_the_rank() -> None:
    assert LoRAConfig().scale_for(8) == 2.0
    assert LoRAConfig(scaling="alpha/r", alpha=16).scale_for(4) == 4.0
    assert LoRAConfig(scaling="rslora", alpha=16).scale_for(4) == pytest.approx(16 / math.sqrt(4))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"targets": []}, "targets"),
        ({"layers": []}, "layers"),
        ({"layers": [-1]}, "layers"),
        ({"r": 0}, "r"),
    ],
)
def test_bad_option_is_named_in_one_line(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as error:
        LoRAConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"r_local": -1}, "r_local"),
        ({"r_inter": -2}, "r_inter"),
        ({"r_local": 0, "r_intra": 0, "r_inter": 0}, "r_"),
        ({"transform": "kronecker", "size": 0}, "size"),
        ({"transform": "gate", "size": -4}, "size"),
    ],
)
def test_bad_bishare_rank_or_size_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as error:
        BiShareConfig(**options)
    assert "\n" not in str(error.value)


def test_two_slots_of_one_key_are_refused() -> None:
    slots = [Slot(name=f"blocks.0.{name}", layer=0, kind="q", in_features=4, out_features=4) for name in ("a", "b")]

    with pytest.raises(UserError, match="same kind"):
        LoRAConfig(r=1).build(slots)
