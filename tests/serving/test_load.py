"""Many threads at once: every request gets its own adapter, whatever is added, removed or damaged meanwhile."""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import WEIGHTS, save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.attach import attach, remove
from bishare.serving.pool import AdapterPool

NUM_THREADS, NUM_CORRUPT, NUM_MOVING = 20, 3, 6
CONFIGS: list[AdapterConfig] = [
    BiShareConfig(r_local=1, r_intra=2, r_inter=2, size=8),
    LoRAConfig(r=2),
    BiShareConfig(transform="slice", r_local=1, r_intra=1, r_inter=2),
    ASLoRAConfig(r=3),
    BiShareConfig(transform="gate", r_local=1, r_intra=2, r_inter=2, size=8),
]
TOKENS = torch.arange(3, 11)


class Load:
    """Threads that ask, threads that add and remove, and what they saw."""

    def __init__(self, model: PreTrainedModel, folder: Path, *, num_adapters: int, num_held: int) -> None:
        self.folder, self.expected = folder, dict[str, Tensor]()
        sizes = [self._write(model, number) for number in range(num_adapters + 2 * NUM_MOVING)]
        self.names = [f"{number}" for number in range(num_adapters)]
        self.moving = {
            f"moving-{i}": (f"{num_adapters + 2 * i}", f"{num_adapters + 2 * i + 1}") for i in range(NUM_MOVING)
        }
        # A batch has at most three rows, so that the factors of all threads could not be there at once.
        self.pool = AdapterPool(model, adapter_bytes=num_held * max(sizes), factor_bytes=NUM_THREADS * max(sizes))
        for name in self.names:
            self.pool.add(name, folder / name)
        self.corrupt = [f"corrupt-{i}" for i in range(NUM_CORRUPT)]
        for name in self.corrupt:
            (folder / name).mkdir()
            data = (folder / "0" / WEIGHTS).read_bytes()
            (folder / name / WEIGHTS).write_bytes(data[: len(data) // 2])
            self.pool.add(name, folder / name)
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()

    @torch.no_grad()
    def _write(self, model: PreTrainedModel, number: int) -> int:
        """One adapter and its logits; its bytes."""
        adapter = attach(model, CONFIGS[number % len(CONFIGS)])
        generator = torch.Generator().manual_seed(number)
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        self.expected[f"{number}"] = model(input_ids=TOKENS[None]).logits[0]
        save_adapter(adapter, self.folder / f"{number}")
        remove(model)
        return sum(t.nbytes for t in [*adapter.parameters(), *adapter.file_buffers().values()])

    def ask(self, seed: int, going: Callable[[int], bool]) -> None:
        """Requests of one to three rows, as long as ``going(requests so far)``."""
        draw = random.Random(seed)
        try:
            number = 0
            while going(number):
                self._ask_once(draw)
                number += 1
        except BaseException as error:
            self._note(wrong=f"{type(error).__name__}: {error}")

    def _ask_once(self, draw: random.Random) -> None:
        names = [draw.choice(self.names) for _ in range(draw.randint(1, 3))]
        special = draw.random()
        if special < 0.1:
            names[-1] = draw.choice(self.corrupt)
        elif special < 0.3:
            names[-1] = draw.choice(list(self.moving))
        try:
            logits = self.pool.logits(TOKENS.expand(len(names), -1), names)
        except UserError as error:
            fair = (names[-1] in self.corrupt and f"adapter '{names[-1]}'" in str(error)) or (
                names[-1] in self.moving and f"'{names[-1]}', which the pool does not have" in str(error)
            )
            self._note("refused", "" if fair else f"{names}: {error}")
            return
        if names[-1] in self.corrupt:
            self._note(wrong=f"{names} was answered")
        for row, name in zip(logits, names, strict=True):
            right = [self.expected[either] for either in self.moving.get(name, (name,))]
            if min((row - one).abs().max().item() for one in right) > 1e-4:
                self._note(wrong=f"{name} in {names} has other logits")
        self._note("answered")
        if self.pool.adapters.used > self.pool.adapters.budget or self.pool.batches.used > self.pool.batches.budget:
            self._note(wrong="over the budget")

    def move(self, going: Callable[[int], bool]) -> None:
        """Add and remove adapters, each name by turns with one of two."""
        draw = random.Random(0)
        there: set[str] = set()
        try:
            number = 0
            while going(number):
                name = draw.choice(list(self.moving))
                if name in there:
                    self.pool.remove(name)
                    there.remove(name)
                else:
                    self.pool.add(name, self.folder / draw.choice(self.moving[name]))
                    there.add(name)
                self._note("moved")
                number += 1
                time.sleep(0.002)
        except BaseException as error:
            self._note(wrong=f"while moving: {type(error).__name__}: {error}")

    def _note(self, what: str = "", wrong: str = "") -> None:
        with self._lock:
            self.done[what] += 1
            self.wrong += [wrong] if wrong else []


@contextmanager
def running(load: Load, going: Callable[[int], bool]) -> Iterator[None]:
    """All threads at work inside, all ended after."""
    threads = [threading.Thread(target=load.ask, args=(seed, going)) for seed in range(NUM_THREADS)]
    mover = threading.Thread(target=load.move, args=(lambda _: any(thread.is_alive() for thread in threads),))
    for thread in (*threads, mover):
        thread.start()
    try:
        yield
    finally:
        for thread in (*threads, mover):
            thread.join()


def check(load: Load, kinds: Sequence[str] = ("answered", "refused", "moved")) -> None:
    assert load.wrong == []
    assert all(load.done[kind] for kind in kinds)
    assert 0 < load.pool.adapters.peak <= load.pool.adapters.budget
    assert 0 < load.pool.batches.peak <= load.pool.batches.budget


def test_threads_get_own_adapters_within_the_budget(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    load = Load(tiny_model("llama"), tmp_path, num_adapters=30, num_held=6)
    with running(load, lambda number: number < 10):
        pass
    check(load)
    assert load.done["answered"] + load.done["refused"] == 10 * NUM_THREADS


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the anonymous memory from /proc")
def test_two_minutes_of_load_keep_memory(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    load = Load(tiny_model("llama"), tmp_path, num_adapters=200, num_held=40)
    end = time.monotonic() + 120
    with running(load, lambda _: time.monotonic() < end):
        time.sleep(30)
        warm = anonymous_bytes()
    check(load)
    print(f"{dict(load.done)}, anonymous memory {(anonymous_bytes() - warm) / 2**20:+.1f} MiB")
    assert anonymous_bytes() - warm < 64 * 2**20


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
