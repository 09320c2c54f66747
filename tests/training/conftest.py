"""A tiny base and a training with merges."""

from typing import Any

import pytest

from tests.parity.launch import tiny_base
from tests.parity.test_parity import METHODS
from tests.training.resumed_runs import LONG

STEPS, STEPS_PER_EPOCH = 11, 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def long_run(base: str) -> dict[str, Any]:
    """20 steps in epochs of 5, merges at steps 4, 6 and 8."""
    return {**METHODS["kronecker, merging"], "base": base, "steps": LONG, "steps_per_epoch": STEPS_PER_EPOCH}


@pytest.fixture(scope="module")
def run(long_run: dict[str, Any]) -> dict[str, Any]:
    """The first 11 steps, with three kinds of weights."""
    return {**long_run, "steps": STEPS, "options": {**long_run["options"], "targets": ["q", "up", "down"]}}
