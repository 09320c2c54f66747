"""Ranks, merging, files and warnings of a plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.analysis.parameters import count_parameters
from bishare.commands.plan.plan import file_sizes, rank_bounds, warnings_for
from bishare.errors import UserError
from bishare.models.architectures import build_adapter
from tests.commands.plan.shipped import QWEN, plan_of, shipped


def test_rank_bounds_follow_the_method() -> None:
    gate = BiShareConfig(transform="gate", size=1024, r_local=2, r_intra=8, r_inter=16)
    kronecker = BiShareConfig(transform="kronecker", r_local=2, r_intra=4, r_inter=16)

    assert set(rank_bounds(build_adapter(shipped(QWEN), gate)).values()) == {4}
    assert rank_bounds(build_adapter(shipped(QWEN), kronecker)) == dict.fromkeys(["q", "k", "v", "up", "down"], 22)


def test_merging_is_counted_after_all_merges(tmp_path: Path) -> None:
    extra = tmp_path / "merging.yaml"
    extra.write_text(
        "trainer:\n  callbacks+:\n    - class_path: callbacks.AdaptiveMerging\n"
        "      init_args: {start: 10, interval: 10, num_merges: 7}\n"
    )

    plan = plan_of(
        "--config", str(extra), "--model.adapter", "bishare.adapters.aslora.ASLoRAConfig", "--model.adapter.r", "8"
    )

    heights = 4096 * 3 + 11008 + 4096
    assert plan["parameters"]["total"] == 8 * (4 * 4096 + 11008) + 32 * 8 * heights
    assert plan["merged"]["total"] == 8 * (4 * 4096 + 11008) + (32 - 7) * 8 * heights
    assert plan["merged"]["dead"] == 7 * 8 * heights


def test_merging_without_groups_is_refused() -> None:
    callback = "[{class_path: callbacks.AdaptiveMerging, init_args: {start: 1, interval: 1, num_merges: 1}}]"

    with pytest.raises(UserError, match="nothing to merge"):
        plan_of("--trainer.callbacks", callback)


def warnings_of(base: str, config: AdapterConfig) -> str:
    adapter = build_adapter(shipped(base), config)
    report = count_parameters(adapter, shipped(base))
    return " ".join(warnings_for(adapter, report, max(rank_bounds(adapter).values())))


def test_gate_larger_than_lora_is_noted() -> None:
    gate = BiShareConfig(transform="gate", size=1024, r_local=2, r_intra=8, r_inter=16)

    warning = warnings_of("huggyllama/llama-7b", gate)

    assert "plain LoRA of rank 4 holds 7,012,352 values" in warning
    assert "8,224,768" in warning


def test_slot_of_vllm_is_noted() -> None:
    assert "takes a slot of 32" in warnings_of(QWEN, BiShareConfig(r_local=2, r_intra=4, r_inter=16))
    assert warnings_of(QWEN, LoRAConfig(r=8)) == ""
    assert "more than vLLM serves (512)" in warnings_of(QWEN, LoRAConfig(r=513))


def test_start_apart_from_base_is_noted() -> None:
    assert "vblora does not start as the base model" in warnings_of("huggyllama/llama-7b", VBLoRAConfig())
    assert "start" not in warnings_of("huggyllama/llama-7b", VeRAConfig(r=64))


def test_seeded_matrices_are_in_no_file() -> None:
    adapter = build_adapter(shipped("huggyllama/llama-7b"), VeRAConfig(r=64))
    sizes = file_sizes(adapter)

    assert sizes.adapter < 1.05 * 4 * 886_784
    assert sizes.checkpoint < 1.05 * 3 * 4 * 886_784 + 900 * 320


@pytest.mark.parametrize("config", [LoRAConfig(r=8), BiShareConfig(size=64)], ids=["lora", "kronecker"])
def test_adapter_file_is_as_large_as_planned(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, config: AdapterConfig
) -> None:
    model = tiny_model("llama")
    planned = file_sizes(build_adapter(model.to("meta"), config)).adapter

    save_adapter(build_adapter_with_values(model, config), tmp_path)

    assert planned == pytest.approx((tmp_path / "adapter_model.safetensors").stat().st_size, rel=0.1)


def build_adapter_with_values(model: PreTrainedModel, config: AdapterConfig) -> Any:
    slots = build_adapter(model, config).slots
    return config.build(slots)


def test_checkpoint_is_as_large_as_planned(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    config = LoRAConfig(r=64)
    model = tiny_model("llama").to("meta")
    adapter = build_adapter_with_values(model, config)
    optimizer = torch.optim.AdamW(adapter.parameters())
    for parameter in adapter.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    torch.save({"state_dict": adapter.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.ckpt")

    planned = file_sizes(build_adapter(model, config)).checkpoint
    assert planned == pytest.approx((tmp_path / "last.ckpt").stat().st_size, rel=0.1)


def test_unknown_devices_are_shown_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    memory = plan_of(config="llama13b")["memory"]

    assert list(memory) == [1, 2, 4, 8]
    assert memory[8]["weights"] < memory[1]["weights"] / 4


def test_stage_decides_the_weights_per_device() -> None:
    stages = {
        "deepspeed_stage_3": 3,
        "{class_path: bishare.deepspeed.BiShareDeepSpeed, init_args: {stage: 3}}": 3,
        "ddp": 0,
    }
    weights = {}
    for strategy, stage in stages.items():
        plan = plan_of("--trainer.strategy", strategy, "--trainer.devices", "8", "--trainer.precision", "bf16-mixed")
        weights.setdefault(stage, set()).add(plan["memory"][8]["weights"])

    assert all(len(found) == 1 for found in weights.values())
    assert weights[3].pop() < weights[0].pop()


def test_deepspeed_in_fp32_doubles_a_bf16_base() -> None:
    bf16 = plan_of("--trainer.devices", "1", "--trainer.precision", "bf16-mixed", config="llama13b")
    fp32 = plan_of("--trainer.devices", "1", "--trainer.precision", "32-true", config="llama13b")

    assert fp32["memory"][1]["weights"] == 2 * bf16["memory"][1]["weights"]


def test_steps_of_data_elsewhere_are_unknown() -> None:
    assert plan_of()["steps_per_epoch"] is None
