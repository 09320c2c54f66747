"""One process, DDP and ZeRO-1, 2 and 3 train the same model, and merge the same layers, from the same start."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.parity.launch import launch, tiny_base
from tests.parity.worker import train
from tests.training.resumed_runs import Record, assert_close, resumed, whole

MERGES = {"start": 2, "interval": 2, "num_merges": 3}
RANKS = {"r_local": 2, "r_intra": 2, "r_inter": 4}
METHODS: dict[str, dict[str, Any]] = {
    "ASLoRA": {"method": "aslora", "options": {"r": 4}, "merging": MERGES},
    "slice": {"method": "bishare", "options": {"transform": "slice", **RANKS}},
    "gate, local merging": {
        "method": "bishare",
        "options": {"transform": "gate", "size": 16, "merging": True, **RANKS},
        "merging": MERGES,
    },
    "kronecker, merging": {
        "method": "bishare",
        "options": {"transform": "kronecker", "size": 16, "merging": True, **RANKS},
        "merging": MERGES,
    },
    "VeRA": {"method": "vera", "options": {"r": 16, "d_initial": 1.0}},
    "VB-LoRA": {"method": "vblora", "options": {"r": 2, "num_vectors": 8}},
}
STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def alone(run: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Record]:
    """The run with clipping at half the median norm of an unclipped run, and what one process makes of it."""
    free = train({**run, "strategy": "one", "root": str(folder)})
    clipped = {**run, "clip": statistics.median(free["norms"]) / 2, "root": str(folder)}
    record = train({**clipped, "strategy": "one"})
    assert len(record["losses"]) == len(record["norms"]) == run["steps"]
    return clipped, record


def relative(mine: list[float], wanted: list[float]) -> float:
    assert len(mine) == len(wanted)
    return max(abs(a - b) / abs(b) for a, b in zip(mine, wanted, strict=True))


def absolute(mine: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == wanted.keys()
    return max(float((mine[name] - value).abs().max()) for name, value in wanted.items())


def assert_same(record: Record, one: Record) -> None:
    assert absolute(record["start"], one["start"]) == 0
    assert record["merges"] == one["merges"]
    assert record["owners"] == one["owners"]
    assert relative(record["losses"], one["losses"]) < 1e-6
    assert relative(record["norms"], one["norms"]) < 1e-6
    assert absolute(record["end"], one["end"]) < 1e-5


class Trained(NamedTuple):
    """A training in one process, and what two processes make of the same training."""

    run: dict[str, Any]
    one: Record
    two: dict[str, Record]
    folder: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Six steps with merges at steps 3 and 4 and the end of an epoch at 5; ZeRO is resumed between the merges too."""
    folder = tmp_path_factory.mktemp("trained")
    method = {**METHODS["kronecker, merging"], "merging": {"start": 2, "interval": 1, "num_merges": 2}}
    run, one = alone({**method, "base": tiny_base(folder / "base", num_layers=3), "steps": 6}, folder)
    runs = {
        "ddp": {**run, "strategy": "ddp"},
        "bfloat16": {**run, "strategy": "zero3", "dtype": "bfloat16", "steps": 2},
    }
    for strategy in ("zero2", "zero3"):
        runs[strategy] = {**whole(run, folder / strategy), "strategy": strategy}
        runs[f"{strategy}, resumed"] = {**resumed(run, 3, folder / strategy), "strategy": strategy}
    records = launch(list(runs.values()), folder / "launch", seconds=500)
    return Trained(run, one, dict(zip(runs, records, strict=True)), folder)


def test_ddp_and_zero_train_as_one_process(trained: Trained) -> None:
    one = trained.one
    assert len(one["merges"]) == 2 * len(one["owners"]) > 0
    assert all(norm > trained.run["clip"] for norm in one["norms"])
    fp32 = dict.fromkeys(("base", "masters", "moments", "means"), "torch.float32")
    for strategy in ("ddp", "zero2", "zero3"):
        record = trained.two[strategy]
        assert_same(record, one)
        assert record["types"] == fp32
        assert (record["shells"] > 0) == (strategy == "zero3")
    half = trained.two["bfloat16"]
    assert half["types"] == {**fp32, "base": "torch.bfloat16"}
    assert absolute(half["start"], one["start"]) == 0


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_resumes_its_own_checkpoints(trained: Trained, strategy: str) -> None:
    assert_close(trained.two[f"{strategy}, resumed"], trained.two[strategy], 3, 1e-6)


def test_one_process_resumes_a_zero_3_checkpoint(trained: Trained) -> None:
    record = train({**resumed(trained.run, 5, trained.folder / "zero3"), "strategy": "one"})
    assert_close(record, trained.two["zero3"], 5, 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_strategy_trains_methods_as_one_process(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategies = ["ddp", "zero1", "zero2", "zero3"]
    runs, ones = [], []
    for method in METHODS.values():
        for dtype in ("float32", "bfloat16"):
            run, one = alone({**method, "base": base, "steps": STEPS, "dtype": dtype}, tmp_path)
            runs.append(run)
            ones.append(one)
    records = iter(
        launch([{**run, "strategy": s} for run in runs for s in strategies], tmp_path / "launch", seconds=3000)
    )
    lines = [
        f"{'method':22}{'strategy':10}{'merges':>8}{'loss':>10}{'norm':>10}{'live':>10}{'bf16 merges':>13}{'loss':>10}"
    ]
    failures = []
    for i, name in enumerate(METHODS):
        by_type = {dtype: [next(records) for _ in strategies] for dtype in ("float32", "bfloat16")}
        for k, strategy in enumerate(strategies):
            record, one = by_type["float32"][k], ones[2 * i]
            half, half_one = by_type["bfloat16"][k], ones[2 * i + 1]
            assert half["types"] == half_one["types"] == {**one["types"], "base": "torch.bfloat16"}
            assert record["types"] == one["types"]
            same, half_same = record["merges"] == one["merges"], half["merges"] == half_one["merges"]
            figures = (
                relative(record["losses"], one["losses"]),
                relative(record["norms"], one["norms"]),
                absolute(record["end"], one["end"]),
            )
            lines.append(
                f"{name:22}{strategy:10}{'same' if same else 'differ':>8}{figures[0]:10.1e}{figures[1]:10.1e}"
                f"{figures[2]:10.1e}{'same' if half_same else 'differ':>13}"
                f"{relative(half['losses'], half_one['losses']):10.1e}"
            )
            if not (same and half_same and figures[0] < 1e-6 and figures[1] < 1e-6 and figures[2] < 1e-5):
                failures.append((name, strategy))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert not failures
