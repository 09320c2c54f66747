"""A tiny base, an adapter of the base, and the command that exports the adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.cli import main
from bishare.models.attach import attach
from bishare.models.loading import load_base
from tests.byte_base import write_byte_base
from tests.commands.export.refusal import Export
from tests.randomised import randomise


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_byte_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def make(base: str, tmp_path: Path) -> Callable[[AdapterConfig], Path]:
    """A function that writes a randomised adapter of the base to ``adapter``."""

    def write(config: AdapterConfig) -> Path:
        adapter = attach(load_base(base, dtype="float32"), config)
        randomise(adapter)
        save_adapter(adapter, tmp_path / "adapter", base=base)
        return tmp_path / "adapter"

    return write


@pytest.fixture
def adapter(make: Callable[[AdapterConfig], Path]) -> Path:
    return make(BiShareConfig(size=24, r_local=1, r_intra=2, r_inter=4))


@pytest.fixture
def export(tmp_path: Path) -> Export:
    def run(form: str, *options: str) -> int:
        arguments = ["--adapter", str(tmp_path / "adapter"), "--format", form, "--out", str(tmp_path / "out")]
        return main(["export", *arguments, *options])

    return run
