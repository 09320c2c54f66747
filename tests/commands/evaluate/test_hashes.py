import hashlib
from pathlib import Path

import pytest

from bishare.commands.evaluate.hashes import adapter_hash, base_hash
from bishare.errors import UserError
from bishare.models.sources import Source


def test_all_weight_files_count_in_order(tmp_path: Path) -> None:
    for name, content in (("b.safetensors", b"2"), ("a.safetensors", b"1"), ("config.json", b"{}")):
        (tmp_path / name).write_bytes(content)
    assert base_hash(Source(str(tmp_path))) == hashlib.sha256(b"12").hexdigest()


def test_gguf_base_is_hashed_and_hub_name_not(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert base_hash(Source(str(tmp_path), gguf_file="a.gguf")) == hashlib.sha256(b"GGUF").hexdigest()
    assert base_hash(Source("someone/model")) is None


def test_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        adapter_hash(tmp_path)
