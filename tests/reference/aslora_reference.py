"""Algorithm 1 of ASLoRA (Hu et al., 2024, arXiv:2412.10135) in plain loops over plain numbers."""

import math
from collections.abc import Sequence

History = Sequence[Sequence[Sequence[float]]]
"""The values of every layer's B after every optimizer step: ``history[t - 1][i]`` is B_i^t, flattened."""


def merges(history: History, *, start: int, interval: int, num_merges: int) -> list[tuple[int, int, int]]:
    """The merges (step, lower layer, upper layer) of a kind of weight; a tied layer's B is never read."""
    num_layers = len(history[0])
    tied: set[int] = set()
    done = []
    for t in range(1, len(history) + 1):
        if not (t > start and (t - start) % interval == 0 and len(done) < num_merges):
            continue
        best = math.inf
        pair = (-1, -1)
        for i in range(num_layers):
            for j in range(i + 1, num_layers):
                if i in tied or j in tied:
                    continue
                squares = 0.0
                for x in range(len(history[0][i])):
                    mean_i = sum(history[k][i][x] for k in range(t)) / t  # eq. 3
                    mean_j = sum(history[k][j][x] for k in range(t)) / t
                    squares += (mean_i - mean_j) ** 2
                if math.sqrt(squares) < best:  # eq. 4
                    best, pair = math.sqrt(squares), (i, j)
        done.append((t, *pair))
        tied.add(pair[0])
    return done
