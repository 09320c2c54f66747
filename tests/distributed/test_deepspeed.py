"""The strategy before any process group; tests/parity trains with two processes."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from bishare.distributed.deepspeed import BiShareDeepSpeed
from bishare.errors import UserError


def test_stage_must_be_known() -> None:
    with pytest.raises(UserError, match="stage is 4; ZeRO has stages 1, 2 and 3"):
        BiShareDeepSpeed(stage=4)  # type: ignore[arg-type]


def test_cpu_device_has_a_number() -> None:
    strategy = Trainer(strategy=BiShareDeepSpeed(stage=1), accelerator="cpu", devices=2, logger=False).strategy
    assert strategy.root_device == torch.device("cpu", 0)


def test_buckets_hold_the_adapter() -> None:
    strategy = BiShareDeepSpeed(stage=2)
    parameters = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    strategy._prepare(parameters)
    assert isinstance(strategy.config, dict)
    zero = strategy.config["zero_optimization"]
    assert zero["stage"] == 2
    assert zero["stage3_param_persistence_threshold"] == 12
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 17
    assert not zero["overlap_comm"]


@pytest.mark.parametrize(("stage", "dtype"), [(2, torch.float32), (3, torch.bfloat16)])
def test_partitioned_bf16_needs_one_type(stage: int, dtype: torch.dtype) -> None:
    strategy = BiShareDeepSpeed(stage=stage)  # type: ignore[arg-type]
    assert isinstance(strategy.config, dict)
    strategy.config["bf16"] = {"enabled": True}
    parameter = nn.Parameter(torch.zeros(3))
    strategy._prepare([parameter])
    assert parameter.dtype == dtype
