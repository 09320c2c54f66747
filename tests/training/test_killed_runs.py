"""A run that is killed anywhere leaves a checkpoint that resumes exactly."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from bishare.training.resume import AtomicCheckpointIO
from tests.parity.launch import launch, start
from tests.parity.test_parity import one_thread  # noqa: F401  # a fixture
from tests.parity.worker import train
from tests.processes import forked
from tests.training.resumed_runs import LONG, assert_bitwise, assert_close, whole


def loaded(folder: Path) -> dict[str, Any] | None:
    """The one file ``last.ckpt``, if the run got that far."""
    last = folder / "last.ckpt"
    if not last.exists():
        return None
    assert last.is_file()
    checkpoint: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(last)
    return checkpoint


def wait_for(path: Path, process: Any, seconds: float) -> None:
    """Until ``path`` exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name} after {seconds} s"
        assert process.exitcode is None
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_run_resumes_exactly(long_run: dict[str, Any], tmp_path: Path) -> None:
    run = {**long_run, "strategy": "one"}
    wanted = train(whole(run, tmp_path / "whole"))
    dice, steps, tries = random.Random(0), [], 0
    while len(steps) < 20:
        folder, tries = tmp_path / f"{tries}", tries + 1
        assert tries <= 60, f"only {len(steps)} of {tries} runs were still there to be killed"
        process = forked.Process(target=train, args=({**run, "folder": str(folder)},))
        process.start()
        wait_for(folder / ".last.ckpt.part", process, 120)  # the first checkpoint is being written
        time.sleep(dice.uniform(0, 1.5) ** 2 if steps else 0)
        if process.exitcode is not None:  # how long a run takes depends on the machine
            continue
        process.kill()
        process.join()
        checkpoint = loaded(folder)
        k = checkpoint["global_step"] if checkpoint else 0
        steps.append(k)
        again = train({**run, "folder": str(folder), **({"resume": str(folder / "last.ckpt")} if checkpoint else {})})
        if k < LONG:
            assert_bitwise(again, wanted, k)
    assert len(set(steps)) > 3, f"always killed at the same steps: {steps}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_zero_run_resumes(long_run: dict[str, Any], tmp_path: Path) -> None:
    run = {**long_run, "strategy": "zero2"}
    dice = random.Random(0)
    (wanted,) = launch([whole(run, tmp_path / "whole")], tmp_path / "launch", seconds=500)
    for i in range(5):
        folder, launch_folder = tmp_path / f"{i}", tmp_path / f"launch-{i}"
        group = start([{**run, "folder": str(folder)}], launch_folder)
        wait_for(folder / "last.ckpt", group.processes[0], 300)
        time.sleep(dice.uniform(0, 1.5))
        group.kill()
        checkpoint = loaded(folder)
        assert checkpoint is not None
        k = checkpoint["global_step"]
        if k < LONG:
            again = {**run, "folder": str(folder), "resume": str(folder / "last.ckpt")}
            (record,) = launch([again], launch_folder, seconds=500)
            assert_close(record, wanted, k, 1e-6)
