"""Writes the results of a run to a small file, for comparisons."""

import json
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from bishare.adapters.counts import num_values
from bishare.adapters.merging import owners_of
from bishare.files import write_text

from .run import adapter_of, head_of, run_folder
from .throughput import GIB, peak_memory

FILE = "result.json"


class ResultFile(Callback):
    """Writes ``result.json`` into the run folder when training ends.

    The file has the fields ``metrics``, the last value of each; ``parameters``, the number of live parameters of the
    adapter; ``head``, the number of parameters of a fully trained head; ``steps``, of the optimizer; ``seconds`` of
    training, without start-up and validation; ``peak_gib``, the memory as logged by ``Throughput``; and ``sharing``,
    by group of weights and layer, the layer whose B is used.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since = 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = state_dict["seconds"]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._since = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._seconds += time.monotonic() - self._since

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        result = {
            "metrics": {name: value.item() for name, value in sorted(trainer.callback_metrics.items())},
            "parameters": num_values(adapter_of(pl_module).live_parameters().values()),
            "head": num_values(head_of(pl_module).values()),
            "steps": trainer.global_step,
            "seconds": round(self._seconds, 2),
            "sharing": owners_of(adapter_of(pl_module)),
            "peak_gib": round(peak_memory(trainer.strategy.root_device) / GIB, 3),
        }
        write_text(run_folder(trainer) / FILE, json.dumps(result, indent=1) + "\n")
