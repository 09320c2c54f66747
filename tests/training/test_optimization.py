"""The optimizer's groups and the learning-rate schedule."""

import pytest
import torch
from torch import nn

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.factors import Slot
from bishare.errors import UserError
from bishare.training.optimization import adamw, gradient_norm, linear_schedule, parameter_groups, warmup_and_decay

SLOTS = [Slot(name=f"layers.0.{kind}", layer=0, kind=kind, in_features=8, out_features=6) for kind in ("q", "up")]


def test_rate_rises_and_falls_to_zero() -> None:
    rates = [linear_schedule(step, warmup_steps=10, total_steps=110) for step in range(111)]
    assert rates[0] == 0.01
    assert rates[5] == pytest.approx(0.505)
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx(0.01)
    assert rates[110] == 0.0


def test_run_without_warmup_starts_at_the_peak() -> None:
    assert linear_schedule(0, warmup_steps=0, total_steps=4) == 1.0


def test_rate_stays_at_zero_past_the_total() -> None:
    assert linear_schedule(7, warmup_steps=2, total_steps=5) == 0.0


def test_every_parameter_is_in_one_group() -> None:
    adapter = BiShareConfig(size=4).build(SLOTS)
    groups = parameter_groups(adapter, learning_rate=1e-3, lr_factors={})
    grouped = [p for group in groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in adapter.parameters()}
    assert len(grouped) == len(list(adapter.parameters()))
    assert [group["name"] for group in groups][:3] == ["inter.A", "inter.B", "inter.kernel"]


def test_group_factor_wins_over_its_roles() -> None:
    adapter = BiShareConfig(size=4).build(SLOTS)
    groups = parameter_groups(adapter, learning_rate=0.1, lr_factors={"B": 16.0, "intra.B": 2.0})
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["local.B"] == rates["inter.B"] == pytest.approx(1.6)
    assert rates["intra.B"] == pytest.approx(0.2)
    assert rates["local.A"] == rates["intra.kernel"] == pytest.approx(0.1)


def test_factor_for_an_unknown_group_is_refused() -> None:
    adapter = BiShareConfig(transform="slice").build(SLOTS)
    with pytest.raises(UserError, match=r"'kernel'; this adapter has A, B, inter\.A"):
        parameter_groups(adapter, learning_rate=0.1, lr_factors={"kernel": 2.0})


def test_factors_and_schedule_multiply() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = adamw([{"params": [weight], "name": "local.B", "lr": 0.4}], weight_decay=0.0)
    schedule = warmup_and_decay(optimizer, warmup_steps=2, total_steps=6)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(3)
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([0.004, 0.202, 0.4, 0.3])


def test_gradient_norm_spans_all_groups() -> None:
    one, two, without = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    one.grad, two.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    optimizer = adamw([{"params": [one]}, {"params": [two, without]}], weight_decay=0.0)
    assert gradient_norm(optimizer) == 5.0


@pytest.mark.parametrize(("fused", "norm"), [(True, 1.25), (False, 5.0)])
def test_only_fused_optimizers_leave_gradients_scaled(fused: bool, norm: float) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([5.0])
    optimizer = torch.optim.AdamW([parameter], fused=fused)
    assert gradient_norm(optimizer, torch.amp.GradScaler("cpu", init_scale=4.0)) == norm
