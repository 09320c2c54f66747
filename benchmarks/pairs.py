"""Runs two or more sides of a comparison alternately, each in a fresh process, and reports medians of paired ratios.

A worker is called as ``python benchmarks/X.py --worker SIDE ...`` and prints one JSON object as its last line, or one
for each step that it is asked for.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM_UP = 3
"""Steps of a process before the first that counts."""


def run(script: str, sides: Sequence[str], *, pairs: int, arguments: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Every side ``pairs`` times, in turns; the results by side."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(pairs):
        for side in sides if number % 2 == 0 else reversed(sides):
            command = [sys.executable, script, "--worker", side, *arguments]
            process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
            if process.returncode:
                raise SystemExit(f"{side} failed:\n{process.stderr[-2000:]}")
            results[side].append(json.loads(process.stdout.strip().splitlines()[-1]))
            print(f"pair {number + 1}/{pairs} {side}: {results[side][-1]}", file=sys.stderr)
    return results


def in_turns(
    script: str, sides: Sequence[str], *, pairs: int, steps: int, arguments: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Every side ``pairs`` times in a new process, all of them at once, taking ``steps`` steps in turns.

    What slows the machine down for some seconds then slows down all sides. The first steps of a process do not count:
    they ask the system for memory that later ones find there. A worker takes a step for each line that it reads; see
    :func:`take_steps`.
    """
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(pairs):
        workers = {side: _start([sys.executable, script, "--worker", side, *arguments]) for side in sides}
        for step in range(-WARM_UP, steps):
            for side in sides if step % 2 else reversed(sides):
                found = _take_step(workers[side], side)
                if step >= 0:
                    results[side].append(found)
        for worker in workers.values():
            worker.communicate()
        medians = {
            side: round(statistics.median(s["seconds"] for s in found[-steps:]), 3) for side, found in results.items()
        }
        print(f"pair {number + 1}/{pairs}, seconds: {medians}", file=sys.stderr)
    return results


def take_steps(step: Callable[[], Any]) -> None:
    """A worker's side of :func:`in_turns`."""
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        step()
        found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
        print(json.dumps(found), flush=True)


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    quiet = {**os.environ, "PYTHONPATH": ".", "TQDM_DISABLE": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)


def _take_step(worker: subprocess.Popen[str], side: str) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    if not (line := worker.stdout.readline()):
        raise SystemExit(f"{side} failed; what it said stands above.")
    found: dict[str, Any] = json.loads(line)
    return found


def ratio(results: Mapping[str, list[dict[str, Any]]], side: str, against: str, key: str) -> float:
    """Median over the pairs of ``side / against``."""
    return statistics.median(a[key] / b[key] for a, b in zip(results[side], results[against], strict=True))


def report(title: str, rows: Sequence[Mapping[str, Any]], results: Any, path: Path) -> None:
    """Print the rows as Markdown, and write everything to ``path`` as JSON."""
    about = {
        "cores": len(os.sched_getaffinity(0)),
        "load before": round(os.getloadavg()[2], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "lightning", "peft")},
    }
    print(f"\n### {title}\n\n{', '.join(f'{k} {v}' for k, v in about.items())}\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"title": title, "about": about, "rows": rows, "runs": results}, indent=1))
