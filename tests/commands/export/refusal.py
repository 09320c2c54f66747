"""What tests of ``export`` name and read."""

from collections.abc import Callable
from pathlib import Path

import pytest

WEIGHTS = "adapter_model.safetensors"
Export = Callable[..., int]
"""From a format and options to the exit code."""


def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The one line on standard error, and nothing left behind."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("bishare: ")] == lines[-1:]
    assert not [path for path in folder.iterdir() if path.name not in ("adapter", "base", "other")]
    return lines[-1]
