"""A tiny base with a byte tokenizer, rows of instructions, and a trained Kronecker adapter."""

import json
from pathlib import Path

import pytest

from bishare.adapters.bishare import BiShareConfig
from tests.byte_base import write_byte_base
from tests.commands.analyze.adapters import write_adapter

ROWS = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 7)]


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_byte_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def kronecker(base: str, tmp_path: Path) -> str:
    return write_adapter(base, tmp_path / "run" / "adapter", BiShareConfig(size=16, r_inter=6))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)
