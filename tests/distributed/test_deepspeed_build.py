"""A killed build of DeepSpeed's operator is named; a running one is waited for."""

import os
import time
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from bishare.deepspeed import BiShareDeepSpeed
from bishare.distributed.deepspeed_build import ABANDONED, OPERATOR, refuse_abandoned_build
from bishare.errors import UserError


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    path = tmp_path / OPERATOR / "lock"
    path.parent.mkdir()
    return path


def left_long_ago(lock: Path) -> None:
    lock.touch()
    then = time.time() - ABANDONED - 60
    os.utime(lock, (then, then))


def test_lock_of_a_killed_build_is_named(lock: Path) -> None:
    left_long_ago(lock)
    with pytest.raises(UserError, match=rf"{lock} is 11 minutes old: .* delete this file and start again"):
        refuse_abandoned_build()
    assert lock.exists()


def test_running_build_and_none_are_accepted(lock: Path) -> None:
    refuse_abandoned_build()
    lock.touch()
    refuse_abandoned_build()


def test_cpu_run_is_refused_before_processes_meet(lock: Path) -> None:
    left_long_ago(lock)
    strategy = BiShareDeepSpeed(stage=2)
    Trainer(accelerator="cpu", strategy=strategy, devices=2, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="delete this file"):
        strategy.setup_distributed()
