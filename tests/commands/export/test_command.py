"""``export`` through the command line: what it writes, what it says, and what it refuses in one line."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import bishare.commands.export.command
from bishare.commands.export.compare_logits import Comparison
from bishare.models.attach import load_adapter
from bishare.models.loading import load_base
from tests.byte_base import write_byte_base
from tests.commands.export.refusal import WEIGHTS, Export, refused


def sequence_logits(model: torch.nn.Module, base: str) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(base)("A prompt that the export has never seen.", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(input_ids=tokens["input_ids"]).logits


def test_peft_is_written_compared_and_described(
    adapter: Path, export: Export, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("peft") == 0

    shown = capsys.readouterr().out
    found = re.search(r"8 prompts, (\d+) tokens: largest difference .* the same top-1 at (\d+) of (\d+)", shown)
    assert found
    assert len(set(found.groups())) == 1
    assert f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules out={tmp_path / 'out'}" in shown
    own, theirs = (path / WEIGHTS for path in (adapter, tmp_path / "out"))
    assert f"adapter {own.stat().st_size / 1e6:.2f} MB" in shown
    assert theirs.stat().st_size > 2 * own.stat().st_size
    names = {WEIGHTS, "adapter_config.json", "generation_config.json", "README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("library_name: peft", "vllm serve", "8 prompts", "MB", "PeftModel.from_pretrained"):
        assert text in card
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == base

    native = load_base(base, dtype="float32")
    load_adapter(native, adapter)
    reopened = PeftModel.from_pretrained(load_base(base, dtype="float32"), tmp_path / "out")
    mine, wanted = sequence_logits(reopened, base), sequence_logits(native, base)
    assert (mine - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_full_model_is_written_with_its_tokenizer(
    adapter: Path, export: Export, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("merged") == 0

    assert f"vllm serve {tmp_path / 'out'}\n" in capsys.readouterr().out
    native = load_base(base, dtype="float32")
    load_adapter(native, adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == torch.float32
    assert [name for name in merged.state_dict() if "bishare" in name] == []
    mine, wanted = sequence_logits(merged, str(tmp_path / "out")), sequence_logits(native, base)
    assert (mine - wanted).abs().max() < 5e-5 * wanted.abs().max()
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("own", "wanted"), [("bfloat16", None), ("float32", "bfloat16")])
def test_model_in_16_bits_is_rounded_once(
    own: str, wanted: str | None, adapter: Path, export: Export, base: str, tmp_path: Path
) -> None:
    source = write_byte_base(tmp_path / "base", dtype=getattr(torch, own))
    options = ["--dtype", wanted] if wanted else []

    assert export("merged", "--base", source, *options) == 0

    weights = load_file(tmp_path / "out" / "model.safetensors")
    plain = load_base(source, dtype="float32")
    slot = load_adapter(plain, adapter).slots[3]
    A, B = plain.bishare.factors(slot)
    expected = (plain.get_submodule(slot.name).weight + B @ A).detach().bfloat16()
    assert torch.equal(weights[f"{slot.name}.weight"], expected)
    assert weights["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_full_folder_is_refused_and_empty_filled(
    adapter: Path, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert export("peft") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()

    assert export("merged") == 1

    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_export_that_differs_is_not_kept(
    form: str,
    adapter: Path,
    export: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = bishare.commands.export.command.logits_of
    calls: list[int] = []

    def disturbed(*arguments: object) -> list[torch.Tensor]:
        calls.append(1)
        logits = real(*arguments)  # type: ignore[arg-type]
        logits[3][0, 0] += 1e-2 * (len(calls) == 3)
        return logits

    monkeypatch.setattr(bishare.commands.export.command, "logits_of", disturbed)

    assert export(form) == 1

    assert len(calls) == 3  # the base, the adapter, the export
    assert "the export is not the adapter, and was not kept" in refused(capsys, tmp_path)


def test_weight_that_peft_misses_is_named(
    adapter: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The difference alone may be too small to tell."""
    whole = bishare.commands.export.command.write_peft

    def all_but_one(model: PreTrainedModel, folder: Path, *, base: str) -> None:
        whole(model, folder, base=base)
        tensors = load_file(folder / WEIGHTS)
        del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    monkeypatch.setattr(bishare.commands.export.command, "write_peft", all_but_one)

    assert export("peft") == 1

    assert re.search(r"PEFT does not find the whole adapter.*layers\.1\.mlp\.up_proj", refused(capsys, tmp_path))


def test_not_a_number_is_no_agreement() -> None:
    with pytest.raises(bishare.commands.export.command.UserError, match="not the adapter"):
        bishare.commands.export.command._check(Comparison(float("nan"), 1.0, 1, 1), 1e-4)
