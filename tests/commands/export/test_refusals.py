"""Damaged adapters, wrong bases and wrong options of ``export`` end in a line."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bishare.adapters.base import AdapterConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.models.attach import attach, load_adapter
from bishare.models.loading import load_base
from tests.byte_base import write_byte_base
from tests.commands.export.refusal import WEIGHTS, Export, refused


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_adapter_without_effect_is_not_exported(
    form: str, base: str, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(attach(load_base(base, dtype="float32"), LoRAConfig()), tmp_path / "adapter", base=base)

    assert export(form) == 1

    assert "changes no logit" in refused(capsys, tmp_path)


def test_rank_beyond_vllm_is_refused_for_peft(
    make: Callable[[AdapterConfig], Path], export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(LoRAConfig(r=513, targets=["q"]))

    assert export("peft") == 1

    assert "a LoRA of rank 513, and vLLM serves at most 512; use --format merged" in refused(capsys, tmp_path)
    assert export("merged") == 0


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def rename_a_key(folder: Path) -> None:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / WEIGHTS)
    tensors["inter.A.every"] = tensors.pop("inter.A.all")
    save_file(tensors, folder / WEIGHTS, metadata=metadata)


def add_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "adapter_model.bin")


def replace_by_a_pickle(folder: Path) -> None:
    torch.save({}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (truncate, r"adapter_model\.safetensors can't be read"),
        (rename_a_key, r"has a tensor 'inter\.A\.every' that this adapter does not"),
        (add_a_pickle, r"holds adapter_model\.bin, a pickle"),
        (replace_by_a_pickle, r"adapter_model\.safetensors can't be read"),
        (shutil.rmtree, r"holds no adapter"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_adapter_ends_in_one_line(
    damage: Callable[[Path], None],
    line: str,
    adapter: Path,
    export: Export,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(adapter)

    assert export("peft") == 1

    assert re.search(line, refused(capsys, tmp_path))


def test_adapter_of_another_base_ends_in_one_line(
    adapter: Path, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_byte_base(tmp_path / "other", num_hidden_layers=2)

    assert export("peft", "--base", other) == 1

    line = refused(capsys, tmp_path)
    assert re.search(r"was trained on another base .*model\.layers\.2\.self_attn\.q_proj is 64 x 64 there", line)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--format", "onnx"], "onnx"),
        (["--dtype", "bfloat16"], "dtype is for --format merged"),
        (["--base", "./nowhere"], "there is no such folder"),
        (["--ouput", "x"], "did you mean --out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_end_in_one_line(
    options: list[str],
    line: str,
    adapter: Path,
    export: Export,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export("peft", *options) == 1

    assert line in refused(capsys, tmp_path)


def test_adapter_of_a_classifier_is_refused(
    adapter: Path, export: Export, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attached = load_adapter(load_base(base, dtype="float32"), adapter)
    save_adapter(attached, adapter, base=base, head={"score.weight": torch.ones(2, 64)})

    assert export("merged") == 1

    assert "comes with a classification head" in refused(capsys, tmp_path)


def test_adapter_without_a_base_asks_for_it(
    adapter: Path, export: Export, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_base(base, dtype="float32")
    save_adapter(load_adapter(model, adapter), adapter)

    assert export("peft") == 1
    assert "give it with --base" in refused(capsys, tmp_path)
    assert export("peft", "--base", base) == 0
