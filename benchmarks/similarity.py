"""How long the similarity of a whole adapter takes from factors, beside the published way on one pair of layers.

    python benchmarks/similarity.py

Random factors with Llama 1-13B's shapes (40 layers; q, k, v, up, down) for LoRA r=8 and Bi-Share (2, 4, 16): entropies,
mutual information, distances, cosine and CKA within layers and across them, and the same of random factors beside. The
published way materialises the updates of two layers, flattens and concatenates them, and takes the log det of their
covariance: one of the 780 pairs of layers, and of the measures the mutual information alone.
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
    return {
        Slot(name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=n, out_features=m): Factors(
            0.02 * torch.randn(rank, n, generator=generator), 0.01 * torch.randn(m, rank, generator=generator)
        )
        for layer in range(num_layers)
        for kind, (n, m) in SHAPES.items()
    }


def from_factors(rank: int) -> dict[str, float]:
    """Seconds for the adapter's similarity, and with that of random factors beside it."""
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
    """Seconds for the mutual information of two layers by materialised matrices in fp32, numpy's covariance."""
    import numpy as np

    updates = draw(8, 2)
    started = time.perf_counter()
    layers = [
        np.concatenate([(u.B @ u.A).numpy().flatten() for slot, u in updates.items() if slot.layer == layer])
        for layer in range(2)
    ]

    def entropy(entries: Any) -> float:
        covariance = np.atleast_2d(np.cov(entries.reshape(-1, 1), rowvar=False))
        return float(0.5 * np.log(2 * np.pi * np.e * np.linalg.det(covariance)))

    first, second, both = (entropy(entries) for entries in (*layers, np.concatenate(layers)))
    return {"seconds": time.perf_counter() - started, "rmi": (first + second - both) / min(first, second)}


def worker(side: str) -> None:
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
        middle = {name: statistics.median(run[name] for run in found) for name in found[0]}
        num_pairs = 1 if side == PUBLISHED else LAYERS * (LAYERS - 1) // 2
        rows.append(
            {
                "similarity at Llama 1-13B's shapes": side,
                "pairs of layers": num_pairs,
                "seconds": middle["seconds"],
                "without random factors": middle.get("without random", ""),
                "mutual information of layers 0 and 1": middle["rmi"],
            }
        )
    pairs.report("Similarity of updates", rows, results, arguments.out / "similarity.json")


if __name__ == "__main__":
    main()
