"""A run that is stopped, or killed, and resumed ends as the run that never stopped."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bishare.training.resume import AtomicCheckpointIO, random_state, rescale_progress, set_random_state
from tests.parity.launch import launch, start, tiny_base
from tests.parity.test_parity import METHODS, one_thread  # noqa: F401  # a fixture
from tests.parity.worker import train

STEPS, STEPS_PER_EPOCH = 20, 5
Record = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(base: str) -> dict[str, Any]:
    """20 steps in epochs of 5, merges at steps 4, 6 and 8."""
    return {**METHODS["kronecker, merging"], "base": base, "steps": STEPS, "steps_per_epoch": STEPS_PER_EPOCH}


def whole(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The run that never stops and keeps a checkpoint of every step."""
    return {**run, "folder": str(folder), "keep": True}


def resumed(run: dict[str, Any], k: int, folder: Path) -> dict[str, Any]:
    """The run that goes on from the checkpoint of step k in ``folder``."""
    return {**run, "root": str(folder / f"from-{k}"), "resume": str(folder / f"step={k}.ckpt")}


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


def check_one_process(run: dict[str, Any], ks: Sequence[int], folder: Path) -> Record:
    run = {**run, "strategy": "one"}
    wanted = train(whole(run, folder))
    for k in ks:
        assert_bitwise(train(resumed(run, k, folder)), wanted, k)
    return wanted


def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_one_process(run, [1, 4, 10, 19], tmp_path)
    shown = capsys.readouterr().out
    assert "Resumed" in shown
    assert "merges done" in shown
    assert "0 of the epoch's 10 micro-batches" in shown  # k = 10
    check = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert all(name.startswith("model.bishare.") for name in check["state_dict"])
    trained = sum(v.numel() * 4 for n, v in check["state_dict"].items() if v.is_floating_point() and "mean" not in n)
    assert (tmp_path / "last.ckpt").stat().st_size <= 4 * trained + 2**20


def test_a_resumed_run_is_resumed_again(run: dict[str, Any], tmp_path: Path) -> None:
    run = {**run, "strategy": "one"}
    wanted = train(whole(run, tmp_path / "0"))
    ks = [3, 5, 8, 10, 15, 17]
    for i, (k, stop) in enumerate(pairwise(ks)):  # each from the run before
        train({**whole(resumed(run, k, tmp_path / f"{i}"), tmp_path / f"{i + 1}"), "stop": stop})
    assert_bitwise(train(resumed(run, 17, tmp_path / "5")), wanted, 17)


def test_checkpoints_of_epochs_ends_and_validations_are_resumed_bitwise(run: dict[str, Any], tmp_path: Path) -> None:
    run = {**run, "strategy": "one", "every": None, "validate": 4}  # validations after steps 2 and 4 of each epoch
    wanted = train(whole(run, tmp_path))
    found = sorted(int(file.stem.removeprefix("step=")) for file in tmp_path.glob("step=*.ckpt"))
    assert found == [2, 4, 7, 9, 12, 14, 17, 19]
    for k in (2, 9):
        assert_bitwise(train(resumed(run, k, tmp_path)), wanted, k)
    epochs = {**run, "validate": 1.0}
    wanted = train(whole(epochs, tmp_path / "epochs"))
    assert_bitwise(train(resumed(epochs, 10, tmp_path / "epochs")), wanted, 10)


@pytest.mark.parametrize("how", [{"steps": 7}, {"stop": 7}])
def test_a_run_that_was_stopped_inside_an_epoch_goes_on_in_it(
    run: dict[str, Any], how: dict[str, int], tmp_path: Path
) -> None:
    # All of it is warm-up, so that the rate does not depend on the number of steps.
    run = {**run, "strategy": "one", "every": None, "warmup": 40}
    wanted = train({**run, "root": str(tmp_path)})
    cut = train({**run, **how, "folder": str(tmp_path / "cut")})
    assert cut["steps"] == 7
    record = train({**run, "root": str(tmp_path / "cut"), "resume": str(tmp_path / "cut" / "last.ckpt")})
    assert_bitwise(record, wanted, 7)


@pytest.mark.parametrize("k", [0, 7, 10])
def test_a_checkpoint_from_inside_a_step_goes_on_at_its_beginning(k: int, run: dict[str, Any], tmp_path: Path) -> None:
    run, path = {**run, "strategy": "one", "root": str(tmp_path), "steps": 12}, str(tmp_path / "midway.ckpt")
    wanted = train({**run, "midway": (2 * k + 1, path)})
    assert_bitwise(train({**run, "resume": path}), wanted, k)


def test_a_run_on_two_processes_is_resumed_on_any_strategy(run: dict[str, Any], tmp_path: Path) -> None:
    one = train(whole({**run, "strategy": "one"}, tmp_path / "one"))
    ks = [4, 7, 10, 19]  # at a merge, between two, at the end of an epoch, before the last step
    ddp, short = {**run, "strategy": "ddp"}, {**run, "steps": 12}
    runs = [whole(ddp, tmp_path / "ddp"), *(resumed(ddp, k, tmp_path / "ddp") for k in ks)]
    for strategy in ("zero2", "zero3"):
        zero = {**short, "strategy": strategy}
        runs += [whole(zero, tmp_path / strategy), resumed(zero, 8, tmp_path / strategy)]
    runs.append(resumed({**run, "strategy": "zero3"}, 15, tmp_path / "one"))
    evaluate = {**run, "validate": 1.0, "evaluate": str(tmp_path / "one" / "step=7.ckpt")}
    runs += [{**evaluate, "strategy": strategy} for strategy in ("ddp", "zero2", "zero3")]
    runs.append({**evaluate, "strategy": "zero3", "dtype": "bfloat16"})
    records = iter(launch(runs, tmp_path / "launch", seconds=550))

    wanted = next(records)
    for k in ks:
        assert_bitwise(next(records), wanted, k)
    for _ in ("zero2", "zero3"):
        wanted = next(records)
        assert_close(next(records), wanted, 8, 1e-6)
    assert_close(next(records), one, 15, 1e-5)
    metrics = train({**evaluate, "strategy": "one"})
    for tolerance in (1e-6, 1e-6, 1e-6, 1e-2):
        assert next(records)["val/loss"] == pytest.approx(metrics["val/loss"], rel=tolerance)
    assert_close(train(resumed({**run, "strategy": "one"}, 9, tmp_path / "ddp")), one, 9, 1e-5)
    assert_close(train(resumed({**short, "strategy": "one"}, 9, tmp_path / "zero3")), wanted, 9, 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_step_can_be_resumed_bitwise(run: dict[str, Any], num_workers: int, tmp_path: Path) -> None:
    run, ks = {**run, "num_workers": num_workers}, range(1, STEPS)
    check_one_process(run, ks, tmp_path / "one")
    of = {**run, "strategy": "ddp"}
    wanted, *records = launch(
        [whole(of, tmp_path / "ddp"), *(resumed(of, k, tmp_path / "ddp") for k in ks)], tmp_path, seconds=3000
    )
    for k, record in zip(ks, records, strict=True):
        assert_bitwise(record, wanted, k)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_zero_is_resumed_before_at_between_and_after_merges(run: dict[str, Any], tmp_path: Path) -> None:
    ks, runs = [1, 4, 5, 7, 10, 19], []  # a merge at 4, between merges at 5 and 7, epoch boundaries at 5 and 10
    for strategy in ("zero1", "zero2", "zero3"):
        of, folder = {**run, "strategy": strategy}, tmp_path / strategy
        runs += [whole(of, folder), *(resumed(of, k, folder) for k in ks)]
    records = iter(launch(runs, tmp_path / "launch", seconds=3000))
    for _ in range(3):
        wanted = next(records)
        for k in ks:
            assert_close(next(records), wanted, k, 1e-6)


# --- killed ------------------------------------------------------------------------------------------------------


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
def test_a_killed_run_leaves_a_checkpoint_that_resumes_exactly(run: dict[str, Any], tmp_path: Path) -> None:
    run = {**run, "strategy": "one"}
    wanted = train(whole(run, tmp_path / "whole"))
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["tests.parity.worker"])
    dice, steps, tries = random.Random(0), [], 0
    while len(steps) < 20:
        folder, tries = tmp_path / f"{tries}", tries + 1
        assert tries <= 60, f"only {len(steps)} of {tries} runs were still there to be killed"
        process = fresh.Process(target=train, args=({**run, "folder": str(folder), "steps": STEPS},))
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
        if k < STEPS:
            assert_bitwise(again, wanted, k)
    assert len(set(steps)) > 3, f"always killed at the same steps: {steps}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_zero_run_leaves_a_checkpoint_that_resumes(run: dict[str, Any], tmp_path: Path) -> None:
    run = {**run, "strategy": "zero2"}
    dice = random.Random(0)
    (wanted,) = launch([whole(run, tmp_path / "whole")], tmp_path / "launch", seconds=500)
    for i in range(5):
        folder, launch_folder = tmp_path / f"{i}", tmp_path / f"launch-{i}"
        launch_folder.mkdir()
        torch.save([{**run, "folder": str(folder)}], launch_folder / "runs.pt")
        process = start(launch_folder)
        process.exitcode = None  # type: ignore[attr-defined]
        wait_for(folder / "last.ckpt", process, 300)
        time.sleep(dice.uniform(0, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        checkpoint = loaded(folder)
        assert checkpoint is not None
        k = checkpoint["global_step"]
        if k < STEPS:
            again = {**run, "folder": str(folder), "resume": str(folder / "last.ckpt")}
            (record,) = launch([again], launch_folder, seconds=500)
            assert_close(record, wanted, k, 1e-6)


# --- parts -------------------------------------------------------------------------------------------------------


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"state": random_state()}, tmp_path / "x.ckpt")
    drawn = random.random(), np.random.rand(), np.random.randn(), float(torch.rand(()))
    set_random_state(AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=True)["state"])
    assert drawn == (random.random(), np.random.rand(), np.random.randn(), float(torch.rand(())))


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, file)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "broken": lambda: None}, file)
    assert AtomicCheckpointIO().load_checkpoint(file) == {"step": 1}


def test_a_view_is_saved_without_what_it_is_a_view_of(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"row": torch.zeros(100_000, 2)[:, :1][:3]}, tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").stat().st_size < 10_000


def test_progress_is_counted_in_the_new_accumulation() -> None:
    progress = {
        "total": {"ready": 18, "completed": 17, "started": 18, "processed": 18},
        "current": {"ready": 8, "completed": 7, "started": 8, "processed": 8},
        "is_last_batch": False,
    }
    rescale_progress(progress, old=2, new=3)
    assert progress["total"] == {"ready": 27, "completed": 26, "started": 27, "processed": 27}
    assert progress["current"] == {"ready": 12, "completed": 11, "started": 12, "processed": 12}
