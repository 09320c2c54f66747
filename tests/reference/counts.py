"""Trainable values of every method in closed form (Zhou et al., 2025, Tables 2, 3, 7 and 8), from shapes alone.

Shapes: ``weights`` lists (layer, in, out) of the adapted weights.
"""

import math
from collections.abc import Sequence

Weights = Sequence[tuple[int, int, int]]


def lora_count(weights: Weights, *, r: int) -> int:
    """``r (in + out)`` for every weight."""
    return sum(r * (num_in + num_out) for _, num_in, num_out in weights)


def num_layers(weights: Weights) -> int:
    return len({layer for layer, _, _ in weights})


def slice_count(weights: Weights, *, local: int, intra: int, inter: int) -> int:
    """The local pairs, a pair of the greatest size for each layer, and a pair of the greatest size for the model."""
    widest = max(num_in for _, num_in, _ in weights) + max(num_out for _, _, num_out in weights)
    return lora_count(weights, r=local) + (intra * num_layers(weights) + inter) * widest


def gate_count(weights: Weights, *, local: int, intra: int, inter: int, size: int) -> int:
    """Pairs of the gate size, and for each weight and active level ``in + s + s + out`` gate values."""
    active = (intra > 0) + (inter > 0)
    gates = sum(num_in + num_out + 2 * size for _, num_in, num_out in weights)
    shared = (intra * num_layers(weights) + inter) * 2 * size
    return lora_count(weights, r=local) + shared + active * gates


def kronecker_count(weights: Weights, *, local: int, intra: int, inter: int, size: int, kernel: str) -> int:
    """Pairs of the shared size, and for each weight and active level a kernel for A and a kernel for B."""
    repeats = sum(math.ceil(num_in / size) + math.ceil(num_out / size) for _, num_in, num_out in weights)
    total = lora_count(weights, r=local)
    for r, num_pairs in ((intra, num_layers(weights)), (inter, 1)):
        if r == 0:  # the level is off, and has no kernels either
            continue
        shared_rows = {"shared": r, "per_rank": r, "r_1": r, "1_r": 1, "r_2": r, "2_r": 2}[kernel]
        kernel_rows = {"shared": 1, "per_rank": r, "r_1": 1, "1_r": r, "r_2": 2, "2_r": r}[kernel]
        total += num_pairs * shared_rows * 2 * size + kernel_rows * repeats
    return total


def vera_count(weights: Weights, *, r: int) -> int:
    """``out + r`` for every weight: b and d."""
    return sum(num_out + r for _, _, num_out in weights)


def vblora_count(weights: Weights, *, r: int, num_vectors: int, vector_length: int) -> int:
    """The bank, and a logit for each vector of the bank at every sub-vector of every A and B."""
    sub_vectors = sum(r * (num_in + num_out) // vector_length for _, num_in, num_out in weights)
    return num_vectors * (vector_length + sub_vectors)
