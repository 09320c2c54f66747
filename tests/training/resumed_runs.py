"""Runs that stop, the runs that resume them, and comparisons of their records."""

from pathlib import Path
from typing import Any

import pytest
import torch

LONG = 20
"""Steps of the slow tests."""


Record = dict[str, Any]


def whole(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The run that never stops and keeps a checkpoint of every step."""
    return {**run, "folder": str(folder), "keep": True}


def resumed(run: dict[str, Any], k: int, folder: Path, root: Path | None = None) -> dict[str, Any]:
    """The run that goes on from the checkpoint of step k in ``folder``."""
    return {**run, "root": str((root or folder) / f"from-{k}"), "resume": str(folder / f"step={k}.ckpt")}


def assert_bitwise(record: Record, wanted: Record, k: int) -> None:
    assert record["steps"] == record["logged_steps"] == wanted["steps"] > k
    assert record["losses"] == wanted["losses"][k:]
    assert record["norms"] == wanted["norms"][k:]
    assert record["merges"] == wanted["merges"]
    assert record["owners"] == wanted["owners"]
    assert record["rolls"] == [rolls[2 * k :] for rolls in wanted["rolls"]]
    assert all(torch.equal(record["end"][name], value) for name, value in wanted["end"].items())


def assert_close(record: Record, wanted: Record, k: int, tolerance: float) -> None:
    assert record["steps"] == wanted["steps"]
    assert record["merges"] == wanted["merges"]
    assert len(record["losses"]) == wanted["steps"] - k
    for mine, other in zip(record["losses"] + record["norms"], wanted["losses"][k:] + wanted["norms"][k:], strict=True):
        assert mine == pytest.approx(other, rel=tolerance)
    assert record["end"].keys() == wanted["end"].keys()
    for name, value in wanted["end"].items():
        assert float((record["end"][name] - value).abs().max()) < tolerance
