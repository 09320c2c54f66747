"""A run of a comparison: ``python -m bishare fit`` in a separate process, and the result in a small file.

Separate processes keep memory and time apart, and a crash ends a single run. A run with a result is trained again
only after a change of the configuration.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bishare.commands.compare.comparison import Comparison
from bishare.commands.config.trees import overlay
from bishare.errors import UserError
from bishare.files import write_text

DIVERGED = "train/loss is "
"""Words of ``fit`` about a loss that is not finite: the learning rate is too high, which is a result."""

Sharing = Mapping[str, Mapping[str, int]]
"""By group of weights and layer, the owner of the layer's B; empty for a method without merging."""


@dataclass(frozen=True)
class Run:
    """The coordinates of a training in the comparison."""

    task: str
    method: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class Result:
    """Score and costs of a run."""

    score: float | None
    """None if the training diverged."""
    parameters: int
    """Live values of the adapter."""
    head: int
    """Values of a classification head, trained in full."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """Time of the training steps."""
    peak_gib: float
    """Peak memory of the process, in GiB."""
    sharing: Sharing = field(default_factory=dict)


def tree_of(comparison: Comparison, run: Run, adapter: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a run, without the run folder.

    Args:
        comparison: The comparison.
        run: The run.
        adapter: Options of the adapter that were solved for.
    """
    tree = overlay(comparison.fit, comparison.tasks[run.task])
    tree = overlay(tree, comparison.methods[run.method].tree)
    model: dict[str, Any] = {"learning_rate": run.learning_rate}
    if adapter:
        model["adapter"] = overlay(tree["model"]["adapter"], {"init_args": adapter})
    trainer = {
        "callbacks+": [{"class_path": "callbacks.ResultFile"}],
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    tree = overlay(tree, {"model": overlay(tree["model"], model), "trainer": overlay(tree.get("trainer", {}), trainer)})
    return {"seed_everything": run.seed, **tree}


class Runner:
    """Trains runs and keeps their results.

    Args:
        comparison: The comparison.
        options: Command-line options of every ``fit``.
        adapters: Options of the adapters that were solved for, by method.
    """

    def __init__(
        self, comparison: Comparison, options: Sequence[str], adapters: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.comparison, self.options, self.adapters = comparison, list(options), adapters or {}

    def result(self, run: Run) -> Result | None:
        """The kept result of a run; None for a new run or an earlier configuration."""
        try:
            kept = json.loads(self._file(run).read_text(encoding="utf-8"))
            return Result(**kept["result"]) if kept["fingerprint"] == self._fingerprint(run) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def execute(self, run: Run) -> Result:
        """Train a run, or return the kept result.

        Raises:
            UserError: ``fit`` failed, with the last line of its output.
        """
        if (done := self.result(run)) is not None:
            return done
        folder = self.comparison.folder / "runs" / run.name
        shutil.rmtree(folder, ignore_errors=True)  # files of a killed run
        folder.mkdir(parents=True)
        config = folder / "fit.yaml"
        config.write_text(yaml.safe_dump(self._tree(run), sort_keys=False), encoding="utf-8")
        log = folder / "output.txt"
        # ResultFile holds all that the table needs. The option stays out of the fingerprint: no result depends on it.
        options = ["--default_callbacks", "false", *self.options, "--trainer.default_root_dir", str(folder)]
        arguments = ["fit", "--config", str(config), *options]
        with log.open("w", encoding="utf-8") as output:
            code = _call([sys.executable, "-m", "bishare", *arguments], output)
        if code == 0:
            result = self._read(folder / "result.json", run)
        else:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [f"exit code {code}"]
            if DIVERGED not in lines[-1]:
                raise UserError(f"{run.name} failed: {lines[-1].removeprefix('bishare: ')} (the whole output: {log})")
            # Diverged runs take no part in any mean, so that their other numbers do not matter.
            result = Result(None, 0, 0, 0, 0.0, 0.0)
        self._keep(run, result)
        return result

    def _tree(self, run: Run) -> dict[str, Any]:
        return tree_of(self.comparison, run, self.adapters.get(run.method))

    def _read(self, file: Path, run: Run) -> Result:
        found = json.loads(file.read_text(encoding="utf-8"))
        metrics = found.pop("metrics")
        if self.comparison.metric not in metrics:
            known = ", ".join(metrics)
            raise UserError(f"metric is {self.comparison.metric}, which {run.name} did not log; it logged {known}.")
        return Result(score=metrics[self.comparison.metric], **found)

    def _keep(self, run: Run, result: Result) -> None:
        kept = {"fingerprint": self._fingerprint(run), "run": asdict(run), "result": asdict(result)}
        write_text(self._file(run), json.dumps(kept, indent=1) + "\n")

    def _file(self, run: Run) -> Path:
        return self.comparison.folder / "results" / f"{run.name}.json"

    def _fingerprint(self, run: Run) -> str:
        text = json.dumps([self._tree(run), self.options, self.comparison.metric], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _call(command: list[str], output: Any) -> int:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        return process.wait()
    except BaseException:
        # After an interrupt the run must not continue without its comparison.
        process.terminate()
        process.wait()
        raise
