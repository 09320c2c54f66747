"""Two processes that form a group as torchrun's do, forked from a server that has imported everything already.

The server starts with the first group and imports torch, Lightning, transformers and DeepSpeed once, about ten seconds;
each group costs a fork. The server never trains: a process whose autograd engine has run cannot be forked.
"""

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed

NUM_PROCESSES = 2

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["tests.parity.worker", "deepspeed"])


class Group:
    """Processes that have begun to call a function.

    Args:
        function: A function of a module.
        arguments: Its arguments; they are pickled.
        folder: Output and result of each process are written there.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        # The store where the processes meet: like torchrun, on a port that the system picks and nobody else can take.
        self._store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = [
            forked.Process(
                target=_call, args=(rank, self._store.port, dict(os.environ), folder, function, arguments), daemon=False
            )
            for rank in range(NUM_PROCESSES)
        ]
        for process in self.processes:
            process.start()

    def results(self, seconds: float) -> list[Any]:
        """What the function returned in each process; all processes are killed after this many seconds."""
        end = time.monotonic() + seconds
        running = list(self.processes)
        while running and time.monotonic() < end:
            wait([process.sentinel for process in running], timeout=end - time.monotonic())
            running = [process for process in running if process.exitcode is None]
            if any(process.exitcode for process in self.processes):
                end = min(end, time.monotonic() + 5)  # the other process waits for a message that will never come
        self.kill()
        codes = [process.exitcode for process in self.processes]
        assert codes == [0] * NUM_PROCESSES, f"exit codes {codes} within {seconds} s:\n{self.output()}"
        return [torch.load(self._folder / f"result-{rank}.pt") for rank in range(NUM_PROCESSES)]

    def output(self) -> str:
        """The end of what each process has printed."""
        texts = [(self._folder / f"output-{rank}.txt").read_text()[-5000:] for rank in range(NUM_PROCESSES)]
        return "\n".join(f"--- process {rank}:\n{text}" for rank, text in enumerate(texts))

    def kill(self) -> None:
        """End the processes that still run, and what they have started."""
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def _call(
    rank: int,
    port: int,
    environment: dict[str, str],
    folder: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Be one process of a group: as torchrun's would, with variables and output of its own."""
    os.setsid()  # so that it can be killed with its children
    gc.freeze()  # modules stay, and no collection looks through them again
    output = os.open(folder / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(
        environment,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(NUM_PROCESSES),
        LOCAL_WORLD_SIZE=str(NUM_PROCESSES),
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="tests",
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(1)
    torch.save(function(*arguments), folder / f"result-{rank}.pt")
