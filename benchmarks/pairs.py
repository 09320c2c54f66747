"""Runs two or more sides of a comparison alternately, each in a fresh process, and reports medians of paired ratios.

A worker is called as ``python benchmarks/X.py --worker SIDE ...`` and prints one JSON object as its last line.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


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
