"""Files that earlier trees wrote: each adapter answers as it did then, and each run goes on from its checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bishare
from bishare.cli import main
from tests.places import PROJECT
from tests.written.write import CONFIGS, STEPS, logits, tiny_llama, write_run

FILES = PROJECT / "tests" / "written" / "format1"


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_an_adapter_answers_as_it_did(name: str) -> None:
    model = tiny_llama()
    adapter = bishare.load_adapter(model, FILES / name)
    assert adapter.config == CONFIGS[name]
    expected = json.loads((FILES / "logits.json").read_text(encoding="utf-8"))[name]
    torch.testing.assert_close(torch.tensor(logits(model)), torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run that the checkpoints were written in, as the working folder."""
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_goes_on_from_its_checkpoint(folder: Path) -> None:
    shutil.copy(FILES / "command.ckpt", folder / "half.ckpt")
    assert main(["fit", "--config", "config.yaml", "--ckpt_path", "half.ckpt"]) == 0
    after = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    expected = load_file(FILES / "after_command" / "adapter_model.safetensors")
    assert after.keys() == expected.keys()
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_from_python_loads_weights_only(folder: Path) -> None:
    checkpoint = torch.load(FILES / "python.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["adapter"] == CONFIGS["kronecker"]
    module = bishare.BiShareModule.load_from_checkpoint(FILES / "python.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STEPS // 2
    for name, value in module.adapter.named_parameters():
        assert torch.equal(value, checkpoint["state_dict"][f"model.bishare.{name}"]), name
