"""Reading and writing whole values where nothing is partitioned; tests/parity holds ZeRO to the same."""

import torch
from torch import nn

from bishare.distributed.partitions import full_fp32, full_shape, whole_parameters, write_fp32


def test_fp32_parameters_are_read_without_a_copy() -> None:
    parameter = nn.Parameter(torch.randn(2, 3))
    (value,) = full_fp32([parameter])
    assert value.data_ptr() == parameter.data_ptr()
    assert not value.requires_grad


def test_half_precision_is_read_as_fp32() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    write_fp32([parameter], [torch.tensor([1.0, 0.1, -2.0])])
    (value,) = full_fp32([parameter])
    assert value.dtype == torch.float32
    assert value.tolist() == torch.tensor([1.0, 0.1, -2.0]).bfloat16().float().tolist()


def test_an_empty_shell_tells_its_shape() -> None:
    shell = nn.Parameter(torch.empty(0))
    shell.ds_shape = torch.Size([4, 5])  # as ZeRO-3 leaves it
    assert full_shape(shell) == (4, 5)
    assert full_shape(nn.Parameter(torch.empty(2))) == (2,)


def test_modules_are_usual_without_deepspeed() -> None:
    with whole_parameters():
        assert nn.Linear(2, 3).weight.shape == (3, 2)
