"""The guard against parameters that do not train."""

import pytest
import torch

from bishare.adapters.bishare import BiShare, BiShareConfig
from bishare.adapters.factors import Slot
from bishare.errors import UserError
from bishare.training.update_guard import UpdateGuard


@pytest.fixture
def adapter() -> BiShare:
    slots = [Slot(name=f"layers.{i}.q", layer=i, kind="q", in_features=8, out_features=6) for i in range(2)]
    return BiShareConfig(transform="slice").build(slots)


def _change(adapter: BiShare, *, but: str = "") -> None:
    with torch.no_grad():
        for name, parameters in adapter.groups().items():
            for p in parameters if name != but else ():
                p.add_(1e-6)


def test_unchanging_group_is_named(adapter: BiShare) -> None:
    guard = UpdateGuard(adapter)
    _change(adapter, but="intra.B")
    with pytest.raises(UserError, match=r"parameters intra\.B have not changed in 3 optimizer steps"):
        guard.check(adapter)


def test_one_changed_value_clears_a_group(adapter: BiShare) -> None:
    guard = UpdateGuard(adapter)
    _change(adapter, but="intra.B")
    with torch.no_grad():
        adapter.intra.B["1"][0, 0] = 1e-30
    guard.check(adapter)


def test_frozen_parameters_are_exempt(adapter: BiShare) -> None:
    adapter.inter.A.requires_grad_(False)
    guard = UpdateGuard(adapter)
    _change(adapter, but="inter.A")
    guard.check(adapter)


def test_values_that_became_nan_count_as_changed(adapter: BiShare) -> None:
    # The loss is what names them; the guard must not blame the learning rate.
    guard = UpdateGuard(adapter)
    with torch.no_grad():
        for p in adapter.parameters():
            p.fill_(float("nan"))
    guard.check(adapter)
