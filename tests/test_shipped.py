"""Where the configurations and callbacks lie."""

from pathlib import Path

import pytest

from bishare import shipped
from tests.places import CONFIGS, PROJECT


def test_clone_has_folders_at_its_top() -> None:
    assert shipped.shipped_folder("configs") == CONFIGS
    assert shipped.shipped_folder("callbacks") == PROJECT / "callbacks"


def test_a_wheel_has_folders_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bishare" / "configs").mkdir(parents=True)
    (tmp_path / "configs").mkdir()  # of another package
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "bishare" / "shipped.py"))
    assert shipped.shipped_folder("configs") == tmp_path / "bishare" / "configs"
