"""``plan``: published counts, closed formulas, and the packages that must not be imported."""

import json
from pathlib import Path
from typing import Any

import pytest

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.commands.config.settings import read_settings
from bishare.commands.plan.plan import as_json, make_plan
from tests.adapters.test_golden import ROWS, config_of, name_of
from tests.commands.plan.shipped import QWEN, counted, plan_of
from tests.places import CONFIGS
from tests.reference.counts import gate_count, kronecker_count, lora_count, slice_count

BASES = {
    "llama1-7b": "huggyllama/llama-7b",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama1-13b": "huggyllama/llama-13b",
}


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_published_counts_on_shipped_architectures(
    row: tuple[str, str, dict[str, Any], int],
) -> None:
    model, method, options, expected = row

    assert counted(BASES[model], config_of(method, options)).num_live == expected


def test_qwen_agrees_with_closed_formulas() -> None:
    """Written out from its shapes: 28 layers, 3584 wide, 18944 in the MLP, 4 key/value heads of 128."""
    shapes = [(3584, 3584), (3584, 512), (3584, 512), (3584, 18944), (18944, 3584)]
    weights = [(layer, n, m) for layer in range(28) for n, m in shapes]
    ranks = {"r_local": 2, "r_intra": 4, "r_inter": 16}
    closed = {"local": 2, "intra": 4, "inter": 16}

    assert counted(QWEN, LoRAConfig(r=8)).num_live == lora_count(weights, r=8) == 13_533_184
    assert counted(QWEN, BiShareConfig(transform="slice", **ranks)).num_live == slice_count(weights, **closed)
    gate = counted(QWEN, BiShareConfig(transform="gate", size=1024, **ranks))
    assert gate.num_live == gate_count(weights, **closed, size=1024)
    kronecker = counted(QWEN, BiShareConfig(transform="kronecker", size=256, **ranks))
    assert kronecker.num_live == kronecker_count(weights, **closed, size=256, kernel="shared")
    sums = 28 * sum(n + m for n, m in shapes)
    assert slice_count(weights, **closed) == 2 * sums + (4 * 28 + 16) * 2 * 18944


FIRST_LINES = {part: part.read_text().splitlines()[0] for part in sorted((CONFIGS / "adapter").glob("*.yaml"))}
PARTS = [part for part, first in FIRST_LINES.items() if "million" in first and "merg" not in first]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_adapter_parts_state_their_millions(part: Path, tmp_path: Path) -> None:
    first = FIRST_LINES[part]
    bases = {"1-7B": "huggyllama/llama-7b", "3.1-8B": "meta-llama/Llama-3.1-8B", "1-13B": "huggyllama/llama-13b"}
    base = next(base for name, base in bases.items() if name in first)
    millions = first.partition(": ")[2].split()[0]
    config = tmp_path / "part.yaml"
    config.write_text(f"model:\n  base: {base}\n  adapter: {part}\n")

    plan = as_json(make_plan(read_settings(["--config", str(config)])))

    assert f"{plan['parameters']['total'] / 1e6:.2f}" == millions


def test_adapter_parts_hold_every_published_row() -> None:
    assert len(PARTS) == len({name_of(row) for row in ROWS if row[1] != "lora"}) - 3  # three parts serve two models


def test_own_architecture_by_option_or_folder(tmp_path: Path) -> None:
    architecture = json.loads((CONFIGS / "base" / "Qwen--Qwen2.5-7B.json").read_text()) | {"num_hidden_layers": 2}
    given = tmp_path / "config.json"
    given.write_text(json.dumps(architecture))

    by_option = plan_of("--model.base", "me/mine", "--architecture", str(given))
    by_folder = plan_of("--model.base", str(tmp_path))

    assert by_option["num_layers"] == by_folder["num_layers"] == 2
    assert by_option["parameters"] == by_folder["parameters"]
