"""What tests of ``fit`` name and read."""

from collections.abc import Callable

import pytest

Run = Callable[..., int]
"""From a command and options to its exit code."""


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]
