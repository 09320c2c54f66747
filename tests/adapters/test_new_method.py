"""A new method is a file and a registration: every command and the pool then know the method."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedModel

import bishare
from bishare.adapters.registry import METHODS
from bishare.cli import main
from bishare.commands.capacity import measure
from bishare.models.loading import load_base
from tests.adapters.toy import Toy
from tests.byte_base import write_byte_base


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """The registration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toy", "tests.adapters.toy:ToyConfig")
        yield
    vars(bishare).pop("ToyConfig", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, instructions and ``toy.yaml``."""
    folder = tmp_path_factory.mktemp("toy")
    rows = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 11)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = write_byte_base(folder / "base")
    adapter = {"class_path": "bishare.ToyConfig", "init_args": {"spread": 0.25}}
    content = {
        "model": {"base": base, "base_dtype": "float32", "learning_rate": 0.1, "adapter": adapter},
        "data": {
            "class_path": "bishare.data.InstructionData",
            "init_args": {"path": str(folder / "rows.jsonl"), "batch_size": 2, "num_validation": 2},
        },
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(folder / "run"),
            "max_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "callbacks.AdapterCheckpoint"}],
        },
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """The trained adapter."""
    assert main(["fit", "--config", str(folder / "toy.yaml")]) == 0
    return folder / "run" / "adapter"


def test_fit_trains_the_method(folder: Path, adapter: Path) -> None:
    assert json.loads((adapter / "adapter_config.json").read_text())["method"] == "toy"
    saved = yaml.safe_load((folder / "run" / "config.yaml").read_text())["model"]["adapter"]
    assert (saved["class_path"], saved["init_args"]["spread"]) == ("bishare.ToyConfig", 0.25)


def test_misspelt_option_is_suggested(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(folder / "toy.yaml"), "--model.adapter.spred", "1"]) == 1
    assert "model.adapter.spred is not known; did you mean spread?" in capsys.readouterr().err


def test_short_name_of_the_class_is_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(folder / "toy.yaml"), "--json", "--model.adapter", "ToyConfig"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "toy"


def load(folder: Path) -> PreTrainedModel:
    return load_base(str(folder / "base"), dtype="float32")


def test_plan_counts_the_method(folder: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(folder / "toy.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == bishare.load_adapter(load(folder), adapter).num_parameters()
    assert set(plan["rank_bounds"].values()) == {1}


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_export_writes_the_method(folder: Path, adapter: Path, form: str) -> None:
    assert main(["export", "--adapter", str(adapter), "--format", form, "--out", str(folder / form)]) == 0
    assert (folder / form / "README.md").is_file()


def test_capacity_compares_the_method(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COUNTS", (100,))
    options = ["--config", str(folder / "toy.yaml"), "--model.adapter", "bishare.LoRAConfig", "--budget-gb", "0.01"]
    assert main(["capacity", *options, "--out", str(folder / "capacity")]) == 0
    methods = json.loads((folder / "capacity" / "capacity.json").read_text())["methods"]
    assert next(method for method in methods if method["method"] == "Toy")["rank"] == 1


def test_pool_serves_the_method(folder: Path, adapter: Path) -> None:
    tokens = torch.tensor([[5, 6, 7], [5, 6, 7]])
    pool = bishare.AdapterPool(load(folder), adapter_bytes=1 << 20, factor_bytes=1 << 20)
    pool.add("mine", adapter)
    logits = pool.logits(tokens, ["mine", None])

    alone = load(folder)
    assert isinstance(bishare.load_adapter(alone, adapter), Toy)
    with torch.no_grad():
        expected = alone(input_ids=tokens[:1]).logits[0]
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
