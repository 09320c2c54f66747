"""Time of a whole adapter's similarity from factors, beside the published computation for a single pair of layers.

    python benchmarks/similarity.py

Random factors of Llama 1-13B's shapes (40 layers; q, k, v, up, down) for LoRA r=8 and Bi-Share (2, 4, 16). Our side
computes entropies, mutual information, distances, cosine and CKA, within layers and across layers, and then the same
measures of random factors. The published code materialises the updates of two layers, flattens and concatenates the
matrices, and takes the log det of the covariance: 1 of the 780 pairs of layers, and the mutual information alone.

Shapes: A [r, in], B [out, r].
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pairs
from llama13b import LAYERS, SHAPES

RANKS = {"LoRA r=8": 8, "Bi-Share (2, 4, 16)": 22}
PUBLISHED = "published, one pair of layers"


def draw(rank: int, num_layers: int) -> dict[Any, Any]:
    """Random updates by slot."""
    import torch

    from bishare.adapters.factors import Factors, Slot

    generator = torch.Generator().manual_seed(0)
    updates = {}
    for layer in range(num_layers):
        for kind, (n, m) in SHAPES.items():
            slot = Slot(name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=n, out_features=m)
            A, B = torch.randn(rank, n, generator=generator), torch.randn(m, rank, generator=generator)
            updates[slot] = Factors(0.02 * A, 0.01 * B)
    return updates


def from_factors(rank: int) -> dict[str, float]:
    """Seconds for the adapter's similarity, without and with the similarity of random factors."""
    from bishare.analysis.similarity.layers import ALL, similarity
    from bishare.analysis.similarity.null import random_updates

    updates = draw(rank, LAYERS)
    started = time.perf_counter()
    found = similarity(updates)
    alone = time.perf_counter() - started
    similarity(random_updates(updates))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "without random": alone, "rmi": found.across[ALL].rmi[0, 1].item()}


def published() -> dict[str, float]:
    """Seconds for the mutual information of two layers, by materialised matrices in fp32 and numpy's covariance."""
    import numpy as np

    updates = draw(8, 2)
    started = time.perf_counter()
    entries: dict[int, list[Any]] = {0: [], 1: []}
    for slot, update in updates.items():
        entries[slot.layer].append((update.B @ update.A).numpy().flatten())
    layers = [np.concatenate(entries[0]), np.concatenate(entries[1])]

    def entropy(numbers: Any) -> float:
        covariance = np.atleast_2d(np.cov(numbers.reshape(-1, 1), rowvar=False))
        return float(0.5 * np.log(2 * np.pi * np.e * np.linalg.det(covariance)))

    first, second, both = map(entropy, (*layers, np.concatenate(layers)))
    return {"seconds": time.perf_counter() - started, "rmi": (first + second - both) / min(first, second)}


def worker(side: str) -> None:
    """Measure a side, and print its time and the mutual information of layers 0 and 1."""
    found = published() if side == PUBLISHED else from_factors(RANKS[side])
    print(json.dumps({name: round(value, 6) for name, value in found.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side, in turns")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    results = pairs.run(sys.argv[0], (*RANKS, PUBLISHED), pairs=arguments.pairs, arguments=[])
    rows = []
    for side, found in results.items():
        medians = {}
        for name in found[0]:
            medians[name] = statistics.median(run[name] for run in found)
        num_pairs = 1 if side == PUBLISHED else LAYERS * (LAYERS - 1) // 2
        rows.append(
            {
                "similarity at Llama 1-13B's shapes": side,
                "pairs of layers": num_pairs,
                "seconds": medians["seconds"],
                "without random factors": medians.get("without random", ""),
                "mutual information of layers 0 and 1": medians["rmi"],
            }
        )
    pairs.report("Similarity of updates", rows, results, arguments.out / "similarity.json")


if __name__ == "__main__":
    main()
