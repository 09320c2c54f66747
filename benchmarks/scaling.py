"""Growth of a training step's time and peak memory with layers, tokens per step and total rank, as exponents.

    python benchmarks/scaling.py

The model is a Llama of random weights, 128 wide, in fp32, with Bi-Share kronecker on q/k/v/up/down and half of the rank
shared by all layers. The data are packs of documents of 128 tokens with a label everywhere. A step has loss, gradients
and AdamW. One quantity varies at a time, from 12 layers, 1,024 tokens and rank 16. The exponent is the slope of
log(value) over log(x): linear growth has 1, a constant part lowers the exponent.

Every point is a process of its own. The process first takes a step of a one-layer model and resets its peak resident
memory (VmHWM). The memory of a point is the new peak minus the resident memory at the reset: base weights, activations,
gradients and optimizer count, while Python, torch and its kernels do not.
"""

import argparse
import json
import math
import statistics
import time
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pairs

DOCUMENT = 128


class Point(NamedTuple):
    """The sizes of a measured model."""

    layers: int = 12
    tokens: int = 1024
    rank: int = 16

    @property
    def side(self) -> str:
        """Name of the worker."""
        return ",".join(map(str, self))


AXES = {
    "layers": [Point(layers=n) for n in (6, 12, 24, 48)],
    "tokens": [Point(tokens=n) for n in (256, 512, 1024, 2048, 4096)],
    "rank": [Point(rank=n) for n in (8, 16, 32, 64, 128)],
}


def worker(point: Point, steps: int) -> None:
    """Measure a point, and print its time and memory."""
    train(Point(layers=1, tokens=DOCUMENT, rank=8), steps=1)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    seconds = train(point, steps=steps + 1)[1:]
    print(json.dumps({"seconds": statistics.median(seconds), "peak_mib": resident("VmHWM") - before}))


def train(point: Point, *, steps: int) -> list[float]:
    """Train for some steps; the seconds of every step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bishare.adapters.bishare import BiShareConfig
    from bishare.data.packing import pack
    from bishare.models.attach import attach
    from bishare.models.packed_attention import use_packed_attention
    from bishare.training.loss import token_loss
    from bishare.training.optimization import adamw, parameter_groups

    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=point.layers,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    use_packed_attention(model)
    ranks = {"r_local": point.rank // 4, "r_intra": point.rank // 4, "r_inter": point.rank // 2}
    adapter = attach(model, BiShareConfig(**ranks, size=64))
    optimizer = adamw(parameter_groups(adapter, [], learning_rate=1e-4, lr_factors={}), weight_decay=0.0)
    documents = [torch.randint(512, (DOCUMENT,)) for _ in range(point.tokens // DOCUMENT)]
    batch = pack(documents, documents)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        token_loss(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds


def resident(field: str) -> float:
    """Resident memory of the process in MiB: current (``VmRSS``) or peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def exponent(xs: list[int], ys: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return statistics.linear_regression(list(map(math.log, xs)), list(map(math.log, ys))).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker")
    parser.add_argument("--pairs", type=int, default=5, help="times that every point is measured")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if args.worker:
        worker(Point(*map(int, args.worker.split(","))), args.steps)
        return
    # The axes have points in common.
    sides = list(dict.fromkeys(point.side for point in chain(*AXES.values())))
    results = pairs.run(__file__, sides, pairs=args.pairs, arguments=["--steps", str(args.steps)])
    rows = []
    for axis, points in AXES.items():
        xs, seconds, mib = [], [], []
        for point in points:
            runs = results[point.side]
            xs.append(getattr(point, axis))
            seconds.append(statistics.median(run["seconds"] for run in runs))
            mib.append(statistics.median(run["peak_mib"] for run in runs))
        rows.append(
            {
                "against": f"{axis} {', '.join(map('{:,}'.format, xs))}",
                "ms per step": ", ".join(f"{1000 * s:.0f}" for s in seconds),
                "exponent of time": exponent(xs, seconds),
                "peak MiB": ", ".join(map("{:.0f}".format, mib)),
                "exponent of memory": exponent(xs, mib),
            }
        )
    pairs.report("Scaling of a training step", rows, results, args.out / "scaling.json")


if __name__ == "__main__":
    main()
