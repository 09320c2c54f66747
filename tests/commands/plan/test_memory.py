"""The memory estimate against the tensors of a real forward and backward pass, and its rules."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.bishare import BiShareConfig
from bishare.commands.plan.memory import (
    HEAD_CHUNK,
    HEAD_SLICE,
    Architecture,
    Setup,
    activation_bytes,
    architecture_of,
    estimate_memory,
    micro_batch_positions,
)
from bishare.models.attach import attach
from bishare.ops.linear_cross_entropy import CHUNK_BYTES, SLICE_VALUES

LLAMA_13B = Architecture(
    num_layers=40,
    hidden=5120,
    intermediate=13824,
    query=5120,
    heads=40,
    key_value=5120,
    vocabulary=32000,
    mlp_kept=2,
    num_values=13_015_864_320,
)
GPU = Setup(
    device="gpu",
    num_devices=1,
    zero_stage=0,
    base_bytes=2,
    live_bytes=4,
    compute_bytes=2,
    batch_size=64,
    tokens_per_micro_batch=1024,
    max_length=256,
    packing=True,
    dropout=False,
    gradient_checkpointing=False,
)


def total(**changes: Any) -> int:
    setup = replace(GPU, **changes)
    return estimate_memory(LLAMA_13B, setup, [], num_adapter=5_600_192, rank=22).total


def test_architecture_is_read_from_the_model(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")

    found = architecture_of(model, model.config)

    assert (found.num_layers, found.hidden, found.intermediate) == (3, 32, 56)
    assert (found.query, found.key_value, found.vocabulary) == (32, 16, 64)
    assert found.mlp_kept == 2
    assert found.num_values == sum(p.numel() for p in model.parameters())


def test_gpt2_has_no_gate_and_its_own_names(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("gpt2")

    found = architecture_of(model, model.config)

    assert found.mlp_kept == 1
    assert (found.num_layers, found.hidden, found.query) == (3, 32, 32)


def test_other_gated_activations_keep_their_output(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    model.config.hidden_act = "gelu"

    assert architecture_of(model, model.config).mlp_kept == 3


@pytest.mark.parametrize("targets", [["q", "k", "v", "up", "down"], ["q", "v"], ["gate", "up", "down"]])
def test_activations_are_those_that_autograd_keeps(
    tiny_model: Callable[..., PreTrainedModel], targets: list[str]
) -> None:
    """Counted by hooks on what is saved for the backward pass; without the model's own weights, each storage once."""
    model = tiny_model("llama").train()
    adapter = attach(model, BiShareConfig(transform="slice", r_local=1, r_intra=1, r_inter=1, targets=targets))
    setup = replace(GPU, device="cpu", base_bytes=4, compute_bytes=4, batch_size=4, max_length=48)
    positions = 4 * 48
    saved: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(3, 64, (4, 48), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad

    architecture = architecture_of(model, model.config)
    estimate = activation_bytes(architecture, setup, adapter.slots, rank=3, positions=positions)

    assert estimate == pytest.approx(sum(saved.values()), rel=0.2)


def test_zero_3_partitions_the_base_but_gathers_some() -> None:
    whole, dealt = (
        estimate_memory(LLAMA_13B, replace(GPU, zero_stage=stage, num_devices=8), [], num_adapter=0, rank=22).weights
        for stage in (2, 3)
    )

    assert whole - dealt == 2 * (LLAMA_13B.num_values * 7 // 8 - 1_000_000_000)


def test_zero_3_alone_holds_the_base_once() -> None:
    one = estimate_memory(LLAMA_13B, replace(GPU, zero_stage=3), [], num_adapter=0, rank=22)

    assert one.weights == 2 * LLAMA_13B.num_values


def test_zero_1_partitions_moments_and_zero_2_gradients() -> None:
    values = 5_600_000
    estimates = [
        estimate_memory(LLAMA_13B, replace(GPU, zero_stage=stage, num_devices=8), [], num_adapter=values, rank=22)
        for stage in (0, 1, 2)
    ]

    assert [e.optimizer for e in estimates] == [8 * values, values, values]
    assert estimates[1].gradients - estimates[2].gradients == 4 * values * 7 // 8
    assert len({e.weights for e in estimates}) == 1


def test_gradient_checkpointing_keeps_one_layer() -> None:
    kept = estimate_memory(LLAMA_13B, GPU, [], num_adapter=0, rank=22).activations
    recomputed = estimate_memory(LLAMA_13B, replace(GPU, gradient_checkpointing=True), [], num_adapter=0, rank=22)

    assert kept / 40 < recomputed.activations < kept / 5


def test_micro_batch_is_near_the_token_budget() -> None:
    for devices in (1, 2, 4, 8):
        assert 700 < micro_batch_positions(replace(GPU, num_devices=devices)) < 1300


def test_device_holds_its_share_of_the_batch() -> None:
    assert micro_batch_positions(replace(GPU, num_devices=64)) < 256
    assert micro_batch_positions(replace(GPU, tokens_per_micro_batch=1)) < 256
    assert micro_batch_positions(replace(GPU, batch_size=1)) == 256


def test_padding_fills_every_row() -> None:
    padded = replace(GPU, packing=False, batch_size=8)

    assert micro_batch_positions(padded) == 8 * 256 > micro_batch_positions(replace(padded, packing=True))


def test_head_is_a_chunk_except_under_zero_3() -> None:
    def head(**changes: Any) -> int:
        setup = replace(GPU, tokens_per_micro_batch=8192, **changes)
        return estimate_memory(LLAMA_13B, setup, [], num_adapter=0, rank=22).head

    assert head() < 35 * 2**20 + 10_000 * 5120 * 4
    assert head(zero_stage=3) > 4 * head()


def test_chunk_is_that_of_the_head() -> None:
    assert (HEAD_CHUNK, HEAD_SLICE) == (CHUNK_BYTES, SLICE_VALUES)


def test_fp32_takes_more_than_bf16() -> None:
    assert total(base_bytes=4, compute_bytes=4) > 1.5 * total()
