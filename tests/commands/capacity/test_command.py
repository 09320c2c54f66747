"""Counted bytes follow the parameters, measured bytes follow the counted ones, and the paper's numbers come out."""

import json
from pathlib import Path

import pytest
import torch

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.cli import main
from bishare.commands.capacity import measure, process_memory
from bishare.models.architectures import build_adapter, build_on_meta
from bishare.models.targets import find_slots

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A configuration on a tiny base, of which only config.json is there."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "run.yaml").write_text(
        "model:\n  base: tiny\n  adapter: {class_path: bishare.BiShareConfig, init_args: {size: 8}}\n"
    )
    files = ["--config", str(tmp_path / "run.yaml"), "--architecture", str(tmp_path / "config.json")]
    return ["capacity", *files, "--out", str(tmp_path / "out")]


def test_the_command_writes_table_plot_and_json(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--budget-gb", "0.01"]) == 0
    report = json.loads((tmp_path / "out" / "capacity.json").read_text())
    assert (tmp_path / "out" / "capacity.png").read_bytes().startswith(b"\x89PNG")
    assert "kronecker" in capsys.readouterr().out
    by_method = {method["method"]: method for method in report["methods"]}
    lora = by_method["LoRA r=8"]
    assert lora["own"] == 4 * lora["num_values"]
    assert lora["fits"]["0.01 GB"] == (10_000_000 - report["base_bytes"]) // lora["own"]
    assert by_method["VeRA"]["slot_rank"] == 256
    assert by_method["configured"]["num_values"] < by_method["kronecker"]["num_values"]
    assert "published_figure" not in report


@pytest.mark.parametrize("budget", ["0", "0.00001", "lots"])
def test_a_budget_that_holds_nothing_is_one_line(
    arguments: list[str], budget: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--budget-gb", budget]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_holding_adapters_takes_the_bytes_that_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    model = build_on_meta(LlamaConfig(**{**TINY, "hidden_size": 512, "intermediate_size": 1024}))
    config = BiShareConfig(transform="slice")
    monkeypatch.setattr(measure, "COUNTS", (50, 100))
    adapter = build_adapter(model, config)
    found = measure.capacity_of("slice", adapter, find_slots(model, config), value_bytes=2)
    assert found.own == 4 * adapter.num_parameters()
    if process_memory.resident_bytes():
        grown = found.held[100] - found.held[50]
        assert abs(grown - 50 * found.own) < 0.1 * 50 * found.own


def test_the_random_pair_of_vera_counts_once() -> None:
    from transformers import LlamaConfig

    model = build_on_meta(LlamaConfig(**TINY))
    config = VeRAConfig(r=16)
    found = measure.capacity_of("vera", build_adapter(model, config), find_slots(model, config), value_bytes=2)
    assert found.once == 4 * 16 * (56 + 56)
    assert found.memory(10) == found.once + 10 * found.own


def test_a_rank_beyond_vllm_has_no_slot() -> None:
    from transformers import LlamaConfig

    model = build_on_meta(LlamaConfig(**TINY))
    config = LoRAConfig(r=600)
    found = measure.capacity_of("wide", build_adapter(model, config), find_slots(model, config), value_bytes=2)
    assert (found.rank, found.slot_rank, found.slot) == (600, None, None)


def test_the_published_numbers_of_adapters_fit_into_their_budgets() -> None:
    for size, count in measure.PUBLISHED.values():
        budget = measure.PUBLISHED_BASE + size * count
        assert measure.fitting(round(budget), round(measure.PUBLISHED_BASE), round(size)) == count
    lora_on_llama_7b = 14_024_704
    assert measure.PUBLISHED["LoRA r=8"][0] == 4 * lora_on_llama_7b


def test_switching_gives_the_factors_of_the_adapter(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from bishare.adapters.checkpoint import read_adapter, save_adapter
    from bishare.serving.compact_adapter import Layout
    from tests.randomised import randomise

    config = BiShareConfig(size=8)
    adapter = config.build(find_slots(build_on_meta(LlamaConfig(**TINY)), config))
    randomise(adapter)
    save_adapter(adapter, tmp_path)
    compact = Layout(config, adapter.slots, torch.device("cpu")).read(read_adapter(tmp_path), where="here")
    factors = measure.switch(compact, 4)
    slot = adapter.slots[0]
    x = torch.randn(1, 5, slot.in_features)
    A, B = adapter.factors(slot)
    update = factors.add_update(slot.name, x, torch.zeros(1, 5, slot.out_features))
    assert torch.allclose(update, x @ A.T @ B.T, atol=1e-5)
