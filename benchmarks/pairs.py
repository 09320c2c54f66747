"""Runs two or more sides of a comparison alternately, each in a fresh process, and reports medians of paired ratios.

A worker is called as ``python benchmarks/X.py --worker SIDE ...``. Its last line is a JSON object; in
:func:`in_turns`, the worker prints a JSON object for each requested step.
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
    """Run every side ``pairs`` times, in turns; the results by side."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(pairs):
        # Alternating order: a machine that slows down over time then favours no side.
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
    """Start all sides at once, ``pairs`` times in new processes, and let them take ``steps`` steps in turns.

    A slow phase of the machine then slows down all sides. The first steps of a process do not count: they request
    memory from the system, and later steps reuse the memory. A worker takes a step for each line of its input; see
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
            worker.communicate()  # closes the input, which ends the worker
        medians = {}
        for side, found_steps in results.items():
            seconds = [found["seconds"] for found in found_steps[-steps:]]
            medians[side] = round(statistics.median(seconds), 3)
        print(f"pair {number + 1}/{pairs}, seconds: {medians}", file=sys.stderr)
    return results


def take_steps(step: Callable[[], Any]) -> None:
    """Take a step for each line of the input, as a worker of :func:`in_turns`."""
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
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"{side} failed; its error stands above.")
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
    print(f"\n### {title}\n\n{', '.join(f'{name} {value}' for name, value in about.items())}\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(_cell, row.values())) + " |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"title": title, "about": about, "rows": rows, "runs": results}, indent=1))


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
