"""Time of merging at Llama 1-13B's shapes: a merge event, and the running means beside the adapter's own work.

    python benchmarks/merging.py [--devices 2] [--tokens 1024]

The adapter has its real size (40 layers; q, k, v, up, down). Lightning trains the adapter on random inputs, without
the 13B frozen weights. The adapter's own work in an optimizer step is the assembly of the factors, the low-rank
products of the step's tokens forward and backward, and AdamW, without the communication between processes. The fastest
of several steps counts.

Shapes: n tokens per step; x [n, in], gradient g [n, out], A [r, in], B transposed [r, out].
"""

import argparse
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pairs
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from llama13b import LAYERS, SHAPES
from torch.utils.data import DataLoader
from typing_extensions import override

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.factors import Slot
from bishare.ops.assembly import assemble
from callbacks import AdaptiveMerging

METHODS: dict[str, AdapterConfig] = {
    "ASLoRA, r 8": ASLoRAConfig(r=8),
    "Bi-Share Kronecker (2, 4, 16)": BiShareConfig(merging=True),
    "Bi-Share slice (2, 4, 16)": BiShareConfig(transform="slice", merging=True),
}
START, EVENTS = 4, 3

Times = dict[str, list[float]]  # seconds by part


class AdapterAlone(LightningModule):
    """The adapter's share of a training step, weight by weight."""

    def __init__(self, config: AdapterConfig, tokens: int, times: Times) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.adapter_config, self.tokens, self.times = config, tokens, times

    @override
    def configure_model(self) -> None:
        if hasattr(self, "adapter"):
            return
        slots = []
        for layer in range(LAYERS):
            for kind, (n, m) in SHAPES.items():
                slots.append(Slot(name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=n, out_features=m))
        torch.manual_seed(0)  # the same values in every process, so that gradients need no communication
        self.adapter: Adapter = self.adapter_config.build(slots)
        for name, group in self.adapter.groups().items():
            if name.endswith(".B"):  # as if trained: at zero, all pairs would have the same distance
                for parameter in group:
                    torch.nn.init.normal_(parameter, std=1e-3)
        self.x = {n: torch.randn(self.tokens, n, requires_grad=True) for n, _ in SHAPES.values()}
        self.g = {m: torch.randn(self.tokens, m) for _, m in SHAPES.values()}

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter.parameters(), lr=1e-4, fused=True)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        started = time.perf_counter()
        for slot in self.adapter.slots:
            A, B, scale = self.adapter.blocks(slot)
            down = assemble(A, length=slot.in_features, dtype=torch.float32, side="A")
            up = assemble(B, length=slot.out_features, dtype=torch.float32, scale=scale, side="B")
            y = self.x[slot.in_features] @ down.T @ up
            torch.autograd.backward(y, self.g[slot.out_features])
        optimizer.step()
        optimizer.zero_grad()
        self.times["own work"].append(time.perf_counter() - started)


class TimedMerging(AdaptiveMerging):
    """The callback with a clock around the running means and around a merge event."""

    def __init__(self, times: Times) -> None:
        super().__init__(START, 1, num_merges=EVENTS)
        self.times = times

    @override
    def _observe(self, *args: Any) -> None:
        self._timed("means", super()._observe, *args)

    @override
    def _merge(self, *args: Any) -> None:
        self._timed("event", super()._merge, *args)

    def _timed(self, part: str, function: Any, *args: Any) -> None:
        started = time.perf_counter()
        function(*args)
        self.times[part].append(time.perf_counter() - started)

    @override
    def _draw(self, *args: Any) -> None:
        """Draw nothing: pictures are no part of a merge event."""


def measure(config: AdapterConfig, *, tokens: int, devices: int) -> Times:
    """Train for a few merges; the seconds of every step by part."""
    times: Times = defaultdict(list)
    callbacks: list[Callback] = [TimedMerging(times)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_steps=START + EVENTS,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder),
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(AdapterAlone(config, tokens, times), DataLoader(list(range(100))))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, help="processes")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per optimizer step and process")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows, results = [], {}
    for name, config in METHODS.items():
        times = results[name] = measure(config, tokens=arguments.tokens, devices=arguments.devices)
        event, means, own = (min(times[part]) for part in ("event", "means", "own work"))
        rows.append(
            {
                "method": name,
                "merge event": f"{event * 1e3:.0f} ms",
                "running means": f"{means * 1e3:.1f} ms",
                "adapter's own step": f"{own * 1e3:,.0f} ms",
                "means / own step": f"{means / own:.1%}",
            }
        )
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return  # rank zero reports
    threads = f"{arguments.devices} process(es), {torch.get_num_threads()} thread(s) each"
    title = f"Merging at Llama 1-13B's shapes: {threads}, {arguments.tokens:,} tokens"
    pairs.report(title, rows, results, arguments.out / f"merging-{arguments.devices}.json")


if __name__ == "__main__":
    main()
