"""``plan``: published counts through the command, closed formulas, files, warnings, and what it must not import."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
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
from bishare.analysis.parameters import ParameterReport, count_parameters
from bishare.commands.config.sections import steps_per_epoch
from bishare.commands.config.settings import read_settings
from bishare.commands.plan.command import run
from bishare.commands.plan.plan import as_json, file_sizes, make_plan, rank_bounds, warnings_for
from bishare.errors import UserError
from bishare.models.architectures import build_adapter, build_on_meta, find_architecture
from tests.adapters.test_golden import ROWS, config_of, name_of
from tests.places import PROJECT
from tests.reference.counts import gate_count, kronecker_count, lora_count, slice_count

CONFIGS = PROJECT / "configs"
BASES = {
    "llama1-7b": "huggyllama/llama-7b",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama1-13b": "huggyllama/llama-13b",
}
QWEN = "Qwen/Qwen2.5-7B"


@cache
def shipped(base: str) -> PreTrainedModel:
    return build_on_meta(find_architecture(base))


def counted(base: str, config: AdapterConfig) -> ParameterReport:
    model = shipped(base)
    return count_parameters(build_adapter(model, config), model)


def plan_of(*arguments: str, config: str = "llama7b") -> dict[str, Any]:
    return as_json(make_plan(read_settings(["--config", str(CONFIGS / f"{config}.yaml"), *arguments])))


# --- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_published_count_comes_out_of_the_shipped_architectures(
    row: tuple[str, str, dict[str, Any], int],
) -> None:
    model, method, options, expected = row

    assert counted(BASES[model], config_of(method, options)).num_live == expected


@pytest.mark.parametrize(
    ("base", "values"),
    [
        ("huggyllama/llama-7b", 6_738_415_616),
        ("huggyllama/llama-13b", 13_015_864_320),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        (QWEN, 7_615_616_512),
    ],
)
def test_shipped_architectures_have_the_published_sizes(base: str, values: int) -> None:
    assert counted(base, LoRAConfig()).base == values


def test_qwen_agrees_with_the_closed_formulas() -> None:
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
def test_every_adapter_part_gives_the_millions_in_its_first_line(part: Path, tmp_path: Path) -> None:
    first = FIRST_LINES[part]
    bases = {"1-7B": "huggyllama/llama-7b", "3.1-8B": "meta-llama/Llama-3.1-8B", "1-13B": "huggyllama/llama-13b"}
    base = next(base for name, base in bases.items() if name in first)
    millions = first.partition(": ")[2].split()[0]
    config = tmp_path / "part.yaml"
    config.write_text(f"model:\n  base: {base}\n  adapter: {part}\n")

    plan = as_json(make_plan(read_settings(["--config", str(config)])))

    assert f"{plan['parameters']['total'] / 1e6:.2f}" == millions


def test_the_adapter_parts_hold_every_published_row() -> None:
    assert len(PARTS) == len({name_of(row) for row in ROWS if row[1] != "lora"}) - 3  # three parts serve two models


def test_rank_bounds_are_those_of_the_method() -> None:
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


def test_merging_of_a_method_that_cannot_merge_is_refused() -> None:
    callback = "[{class_path: callbacks.AdaptiveMerging, init_args: {start: 1, interval: 1, num_merges: 1}}]"

    with pytest.raises(UserError, match="nothing to merge"):
        plan_of("--trainer.callbacks", callback)


# --- warnings and files --------------------------------------------------------------------------------------------


def warnings_of(base: str, config: AdapterConfig) -> str:
    adapter = build_adapter(shipped(base), config)
    report = count_parameters(adapter, shipped(base))
    return " ".join(warnings_for(adapter, report, max(rank_bounds(adapter).values())))


def test_a_gate_larger_than_the_lora_that_contains_it_is_pointed_out() -> None:
    gate = BiShareConfig(transform="gate", size=1024, r_local=2, r_intra=8, r_inter=16)

    warning = warnings_of("huggyllama/llama-7b", gate)

    assert "plain LoRA of rank 4 holds 7,012,352 values" in warning
    assert "8,224,768" in warning


def test_the_slot_in_vllm_is_pointed_out() -> None:
    assert "takes a slot of 32" in warnings_of(QWEN, BiShareConfig(r_local=2, r_intra=4, r_inter=16))
    assert warnings_of(QWEN, LoRAConfig(r=8)) == ""
    assert "more than vLLM serves (512)" in warnings_of(QWEN, LoRAConfig(r=513))


def test_a_start_beside_the_base_model_is_pointed_out() -> None:
    assert "vblora does not start as the base model" in warnings_of("huggyllama/llama-7b", VBLoRAConfig())
    assert "start" not in warnings_of("huggyllama/llama-7b", VeRAConfig(r=64))


def test_random_matrices_that_a_seed_gives_are_in_no_file() -> None:
    adapter = build_adapter(shipped("huggyllama/llama-7b"), VeRAConfig(r=64))
    sizes = file_sizes(adapter)

    assert sizes.adapter < 1.05 * 4 * 886_784
    assert sizes.checkpoint < 1.05 * 3 * 4 * 886_784 + 900 * 320


@pytest.mark.parametrize("config", [LoRAConfig(r=8), BiShareConfig(size=64)], ids=["lora", "kronecker"])
def test_the_adapter_file_is_as_large_as_planned(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, config: AdapterConfig
) -> None:
    model = tiny_model("llama")
    planned = file_sizes(build_adapter(model.to("meta"), config)).adapter

    save_adapter(build_adapter_with_values(model, config), tmp_path)

    assert planned == pytest.approx((tmp_path / "adapter_model.safetensors").stat().st_size, rel=0.1)


def build_adapter_with_values(model: PreTrainedModel, config: AdapterConfig) -> Any:
    slots = build_adapter(model, config).slots
    return config.build(slots)


def test_the_checkpoint_is_as_large_as_planned(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
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


# --- the base ------------------------------------------------------------------------------------------------------


def test_an_unknown_base_is_explained_without_a_download() -> None:
    with pytest.raises(UserError, match=r"--architecture.*base/nobody--nothing.json.*hf download nobody/nothing"):
        plan_of("--model.base", "nobody/nothing")


def test_the_architecture_of_a_base_of_ones_own_can_be_given(tmp_path: Path) -> None:
    architecture = json.loads((CONFIGS / "base" / "Qwen--Qwen2.5-7B.json").read_text()) | {"num_hidden_layers": 2}
    given = tmp_path / "config.json"
    given.write_text(json.dumps(architecture))

    by_option = plan_of("--model.base", "me/mine", "--architecture", str(given))
    by_folder = plan_of("--model.base", str(tmp_path))

    assert by_option["num_layers"] == by_folder["num_layers"] == 2
    assert by_option["parameters"] == by_folder["parameters"]


def test_a_file_beside_the_configuration_wins(tmp_path: Path) -> None:
    architecture = json.loads((CONFIGS / "base" / "huggyllama--llama-7b.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "huggyllama--llama-7b.json").write_text(json.dumps(architecture))
    mine = tmp_path / "mine.yaml"
    mine.write_text("model:\n  base: huggyllama/llama-7b\n  adapter: bishare.LoRAConfig\n")

    assert as_json(make_plan(read_settings(["--config", str(mine)])))["num_layers"] == 3


def test_a_broken_architecture_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "config.json"
    broken.write_text('{"model_type": "no_such_model"}')

    with pytest.raises(UserError, match=r"config\.json is no config.json of a model that transformers knows"):
        plan_of("--architecture", str(broken))


# --- devices, steps ------------------------------------------------------------------------------------------------


def test_devices_that_depend_on_the_machine_are_shown_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    memory = plan_of(config="llama13b")["memory"]

    assert list(memory) == [1, 2, 4, 8]
    assert memory[8]["weights"] < memory[1]["weights"] / 4


@pytest.mark.parametrize(("given", "count"), [("3", 3), ("'2'", 2), ("[0, 2]", 2), ("'0,1,5'", 3)])
def test_devices_are_counted_in_every_notation(given: str, count: int) -> None:
    assert list(plan_of("--trainer.devices", given)["memory"]) == [count]


def test_strategy_and_stage_are_read_in_every_notation() -> None:
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


@pytest.mark.parametrize("form", ["lines", "list"])
def test_steps_are_counted_from_a_local_file(tmp_path: Path, form: str) -> None:
    rows = [{"instruction": "a", "output": "b"}] * 150
    path = tmp_path / ("rows.jsonl" if form == "lines" else "rows.json")
    path.write_text("\n".join(map(json.dumps, rows)) if form == "lines" else json.dumps(rows))
    data = {"class_path": "bishare.data.InstructionData", "init_args": {"path": str(path), "batch_size": 10}}

    assert steps_per_epoch(data) == 14  # 15 rows are held out
    assert steps_per_epoch({"init_args": data["init_args"] | {"num_validation": 0, "max_examples": 31}}) == 4


def test_steps_of_a_part_of_data_elsewhere_are_known() -> None:
    assert steps_per_epoch({"init_args": {"max_examples": 641, "batch_size": 8}}) == 81


def test_steps_of_data_elsewhere_are_unknown() -> None:
    assert plan_of()["steps_per_epoch"] is None


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_tables_hold_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    run("plan", ["--config", str(CONFIGS / "llama13b.yaml")])

    printed = capsys.readouterr().out
    for figure in ("2,884,544", "21,954,560", "13,015,864,320", "intra.kernel", "activations", "slot of 32"):
        assert figure in printed


def test_it_imports_neither_lightning_nor_deepspeed() -> None:
    code = (
        "import sys; from bishare.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'lightning', 'deepspeed', 'datasets', 'pytorch_lightning'} & set(sys.modules))); sys.exit(code)"
    )
    arguments = ["plan", "--config", "configs/llama13b.yaml", "--json"]

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stderr
    text, _, last = done.stdout.rstrip().rpartition("\n")
    assert last == "[]"
    assert json.loads(text)["parameters"]["total"] == 2_884_544  # the As shared, for merging
