"""The README's examples run as they stand, in a folder with a tiny base where the README has one."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bishare
from bishare.commands.fit.command import BiShareCLI
from tests.byte_base import write_byte_base
from tests.places import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def example(language: str, word: str) -> str:
    """The block of the README in a language that holds a word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return str(block)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``my/llama`` and ``my/instructions.jsonl``."""
    monkeypatch.chdir(tmp_path)
    write_byte_base(tmp_path / "my" / "llama")
    rows = [{"instruction": f"Say {number}.", "output": str(number)} for number in range(80)]
    (tmp_path / "my" / "instructions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_training_from_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    variables: dict[str, Any] = {}
    exec(example("python", "lightning"), variables)
    assert variables["trainer"].global_step == 1
    answers = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert len(answers) == 1


def test_attaching_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example("python", "bishare.attach"), {})
    assert "LoRA adds" in capsys.readouterr().out
    assert (folder / "my" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_pool_runs(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained("my/llama")
    for name in ("german", "python"):
        adapter = bishare.attach(model, bishare.BiShareConfig(size=12))
        bishare.save_adapter(adapter, folder / "adapters" / name, base="my/llama")
        bishare.remove(model)
    tokenizer = AutoTokenizer.from_pretrained("my/llama")
    tokenizer.pad_token = tokenizer.eos_token
    prompts = tokenizer(["one", "two", "six"], return_tensors="pt")
    variables: dict[str, Any] = {"bishare": bishare, "model": model, "prompts": prompts, "torch": torch}
    exec(example("python", "AdapterPool"), variables)
    assert len(variables["answers"]) == 3


def test_the_configuration_is_built(folder: Path) -> None:
    (folder / "mine.yaml").write_text(example("yaml", "model:"), encoding="utf-8")
    cli = BiShareCLI("fit", ["--config", "mine.yaml"], run=False)
    assert cli.model.base == cli.datamodule.base == "meta-llama/Llama-3.1-8B"
    assert cli.trainer.default_root_dir == "runs/mine"
