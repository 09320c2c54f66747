"""Values and bytes are counted from shapes."""

import torch
from torch import nn

from bishare.adapters.counts import num_bytes, num_lora_values, num_values
from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRAConfig

SLOTS = [
    Slot(name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=n, out_features=m)
    for layer in range(2)
    for kind, n, m in [("q", 16, 8), ("down", 32, 16)]
]


def test_lora_values_are_those_of_the_method() -> None:
    assert num_lora_values(SLOTS, 3) == LoRAConfig(r=3).build(SLOTS).num_parameters()
    assert num_lora_values(SLOTS) == 8 * 2 * (16 + 8 + 32 + 16)


def test_partitioned_values_are_counted_whole() -> None:
    whole, partitioned = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(0))
    partitioned.ds_numel = 10  # as ZeRO-3 leaves a parameter
    assert num_values([whole, partitioned]) == 16


def test_bytes_follow_the_type() -> None:
    tensors = [torch.zeros(2, 3), torch.zeros(4, dtype=torch.bfloat16), torch.zeros(5, device="meta")]
    assert num_bytes(tensors) == 24 + 8 + 20
