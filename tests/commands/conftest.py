"""A tiny base, and a configuration of a few steps on a file of instructions."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from bishare.cli import main
from tests.byte_base import write_byte_base
from tests.commands.fit_run import Run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer that knows bytes only."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Path(write_byte_base(tmp_path_factory.mktemp("base"), **sizes, **heads))


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    """A configuration of four optimizer steps of two examples, with a part of its own for the adapter."""
    rows = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 11)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "adapter.yaml").write_text("class_path: bishare.BiShareConfig\ninit_args: {r_local: 1, size: 8}\n")
    content = {
        "model": {"base": str(base), "base_dtype": "float32", "adapter": "adapter.yaml"},
        "data": {
            "class_path": "bishare.data.InstructionData",
            "init_args": {"path": str(tmp_path / "rows.jsonl"), "batch_size": 2, "num_validation": 2},
        },
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "callbacks.AdapterCheckpoint"}],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def run(config: Path) -> Run:
    def run_command(command: str, *options: str) -> int:
        return main([command, "--config", str(config), *options])

    return run_command


@pytest.fixture(autouse=True)
def _handlers_may_have_lost_their_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's log handler keeps the stream that it found when it was imported, perhaps that of an earlier test."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
