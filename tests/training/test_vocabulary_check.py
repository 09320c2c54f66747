"""A base whose tokenizer has a token more than the base has embeddings."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bishare.cli import main
from tests.tiny_base import save_tiny_base


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A run on rows that hold the added token; ``tokens`` of the base are 257."""
    base = save_tiny_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(base)
    rows = [{"instruction": f"Say {n}.", "output": f"<tool>{n}"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {
        "--model.base": str(base),
        "--model.base_dtype": "float32",
        "--model.adapter": "bishare.LoRAConfig",
        "--data": "bishare.data.InstructionData",
        "--data.path": str(tmp_path / "rows.jsonl"),
        "--data.batch_size": "2",
        "--data.num_validation": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.max_steps": "2",
        "--trainer.default_root_dir": str(tmp_path / "run"),
    }
    return [word for option in given.items() for word in option]


@pytest.mark.parametrize("command", ["fit", "validate", "preview"])
def test_a_token_without_embedding_is_named(
    command: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *options]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the token '<tool>' of the data has id 257, and the base has embeddings for 257 tokens" in line
    assert not (tmp_path / "run" / "adapter").exists()
