"""A run that stops and resumes ends as the unbroken run."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bishare.training.resume import AtomicCheckpointIO, random_state, rescale_progress, set_random_state
from tests.parity.launch import launch
from tests.parity.test_parity import one_thread  # noqa: F401  # a fixture
from tests.parity.worker import train
from tests.training.resumed_runs import LONG, Record, assert_bitwise, assert_close, resumed, whole

MIDWAY = (0, 7, 10)
"""Optimizer steps after which a checkpoint is saved in the middle of the next step."""


@pytest.fixture(scope="module")
def unbroken(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """The whole run in this process: the folder of its checkpoints, and its record."""
    folder = tmp_path_factory.mktemp("unbroken")
    midway = {2 * k + 1: str(folder / f"midway={k}.ckpt") for k in MIDWAY}
    return folder, train({**whole(run, folder), "strategy": "one", "midway": midway})


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("step=")) for file in folder.glob("step=*.ckpt"))


def test_resumed_run_is_bitwise_the_unbroken_one(
    run: dict[str, Any], unbroken: tuple[Path, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, wanted = unbroken
    for k in (1, 4, 10):
        assert_bitwise(train({**resumed(run, k, folder, tmp_path), "strategy": "one"}), wanted, k)
    shown = capsys.readouterr().out
    assert "Resumed" in shown
    assert "merges done" in shown
    assert "0 of the epoch's 10 micro-batches" in shown  # k = 10
    check = AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt")
    assert all(name.startswith("model.bishare.") for name in check["state_dict"])
    trained = sum(v.numel() * 4 for n, v in check["state_dict"].items() if v.is_floating_point() and "mean" not in n)
    assert (folder / "last.ckpt").stat().st_size <= 4 * trained + 2**20


def test_resumed_run_is_resumed_again(run: dict[str, Any], unbroken: tuple[Path, Record], tmp_path: Path) -> None:
    (folder, wanted), run = unbroken, {**run, "strategy": "one"}
    for k, stop in pairwise([3, 5, 8, 10]):  # each from the run before
        following = tmp_path / f"until-{stop}"
        train({**whole(resumed(run, k, folder), following), "stop": stop})
        folder = following
    assert_bitwise(train(resumed(run, 10, folder)), wanted, 10)


def test_checkpoints_of_validations_are_resumed_bitwise(run: dict[str, Any], tmp_path: Path) -> None:
    # Validations after steps 2 and 4 of each epoch.
    run = {**run, "strategy": "one", "every": None, "validate": 4, "steps": 8}
    wanted = train(whole(run, tmp_path))
    assert saved_steps(tmp_path) == [2, 4, 7]
    for k in (2, 7):
        assert_bitwise(train(resumed(run, k, tmp_path)), wanted, k)


def test_checkpoints_of_epochs_are_resumed_bitwise(run: dict[str, Any], tmp_path: Path) -> None:
    run = {**run, "strategy": "one", "every": None, "validate": 1.0, "steps": 7, "steps_per_epoch": 3}
    wanted = train(whole(run, tmp_path))
    assert saved_steps(tmp_path) == [3, 6, 7]
    assert_bitwise(train(resumed(run, 6, tmp_path)), wanted, 6)


@pytest.fixture(scope="module")
def warming_up(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Record]:
    """A run that is all warm-up, so that the rate does not depend on the number of steps; and its record."""
    run = {**run, "strategy": "one", "every": None, "warmup": 40, "steps": 7, "steps_per_epoch": 3}
    return run, train({**run, "root": str(tmp_path_factory.mktemp("warming-up"))})


@pytest.mark.parametrize("how", [{"steps": 4}, {"stop": 4}])
def test_run_stopped_inside_an_epoch_goes_on(
    warming_up: tuple[dict[str, Any], Record], how: dict[str, int], tmp_path: Path
) -> None:
    run, wanted = warming_up
    cut = train({**run, **how, "folder": str(tmp_path / "cut")})
    assert cut["steps"] == 4
    record = train({**run, "root": str(tmp_path / "cut"), "resume": str(tmp_path / "cut" / "last.ckpt")})
    assert_bitwise(record, wanted, 4)


@pytest.mark.parametrize("k", MIDWAY)
def test_checkpoint_inside_a_step_resumes_its_beginning(
    k: int, run: dict[str, Any], unbroken: tuple[Path, Record], tmp_path: Path
) -> None:
    folder, wanted = unbroken
    resume = {"root": str(tmp_path), "resume": str(folder / f"midway={k}.ckpt")}
    assert_bitwise(train({**run, "strategy": "one", **resume}), wanted, k)


def test_two_processes_are_resumed_on_any_strategy(
    run: dict[str, Any], unbroken: tuple[Path, Record], tmp_path: Path
) -> None:
    folder, one = unbroken
    ks = [4, 7, 10]  # at a merge, between two, at the end of an epoch and before the last step
    ddp = {**run, "strategy": "ddp"}
    runs = [whole(ddp, tmp_path / "ddp"), *(resumed(ddp, k, tmp_path / "ddp") for k in ks)]
    runs.append({**resumed(run, 9, folder, tmp_path), "strategy": "zero3"})
    evaluate = {**run, "validate": 1.0, "evaluate": str(folder / "step=7.ckpt")}
    runs += [{**evaluate, "strategy": strategy} for strategy in ("ddp", "zero2", "zero3")]
    runs.append({**evaluate, "strategy": "zero3", "dtype": "bfloat16"})
    records = iter(launch(runs, tmp_path / "launch", seconds=550))

    wanted = next(records)
    for k in ks:
        assert_bitwise(next(records), wanted, k)
    assert_close(next(records), one, 9, 1e-5)
    metrics = train({**evaluate, "strategy": "one"})
    for tolerance in (1e-6, 1e-6, 1e-6, 1e-2):
        assert next(records)["val/loss"] == pytest.approx(metrics["val/loss"], rel=tolerance)
    assert_close(train(resumed({**run, "strategy": "one"}, 9, tmp_path / "ddp")), one, 9, 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_step_can_be_resumed_bitwise(long_run: dict[str, Any], num_workers: int, tmp_path: Path) -> None:
    run, ks = {**long_run, "num_workers": num_workers}, range(1, LONG)
    of = {**run, "strategy": "one"}
    wanted = train(whole(of, tmp_path / "one"))
    for k in ks:
        assert_bitwise(train(resumed(of, k, tmp_path / "one")), wanted, k)
    of = {**run, "strategy": "ddp"}
    wanted, *records = launch(
        [whole(of, tmp_path / "ddp"), *(resumed(of, k, tmp_path / "ddp") for k in ks)], tmp_path, seconds=3000
    )
    for k, record in zip(ks, records, strict=True):
        assert_bitwise(record, wanted, k)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_zero_is_resumed_around_merges(long_run: dict[str, Any], tmp_path: Path) -> None:
    ks, runs = [1, 4, 5, 7, 10, 19], []  # a merge at 4, between merges at 5 and 7, epoch boundaries at 5 and 10
    for strategy in ("zero1", "zero2", "zero3"):
        of, folder = {**long_run, "strategy": strategy}, tmp_path / strategy
        runs += [whole(of, folder), *(resumed(of, k, folder) for k in ks)]
    records = iter(launch(runs, tmp_path / "launch", seconds=3000))
    for _ in range(3):
        wanted = next(records)
        for k in ks:
            assert_close(next(records), wanted, k, 1e-6)


# --- parts -------------------------------------------------------------------------------------------------------


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"state": random_state()}, tmp_path / "x.ckpt")
    drawn = random.random(), np.random.rand(), np.random.randn(), float(torch.rand(()))
    set_random_state(AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=True)["state"])
    assert drawn == (random.random(), np.random.rand(), np.random.randn(), float(torch.rand(())))


def test_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, file)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "broken": lambda: None}, file)
    assert AtomicCheckpointIO().load_checkpoint(file) == {"step": 1}


def test_view_is_saved_without_its_storage(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"row": torch.zeros(100_000, 2)[:, :1][:3]}, tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").stat().st_size < 10_000


def test_progress_is_counted_in_new_accumulation() -> None:
    progress = {
        "total": {"ready": 18, "completed": 17, "started": 18, "processed": 18},
        "current": {"ready": 8, "completed": 7, "started": 8, "processed": 8},
        "is_last_batch": False,
    }
    rescale_progress(progress, old=2, new=3)
    assert progress["total"] == {"ready": 27, "completed": 26, "started": 27, "processed": 27}
    assert progress["current"] == {"ready": 12, "completed": 11, "started": 12, "processed": 12}
