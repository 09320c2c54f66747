"""VeRA and VB-LoRA as written in the papers: diagonal matrices, loops over sub-vectors, ``[out, in]`` updates.

Kopiczko et al., 2023 (VeRA, arXiv:2310.11454), eq. 2; Li et al., 2024 (VB-LoRA, arXiv:2405.15179), section 3.
"""

import math

import torch
from torch import Tensor


def vera_update(A: Tensor, B: Tensor, *, d: Tensor, b: Tensor) -> Tensor:
    """``Λ_b B Λ_d A`` with A [r, in], B [max out, r], d [r], b [out]."""
    return torch.diag(b) @ B[: len(b)] @ torch.diag(d) @ A


def mixed(logits: Tensor, bank: Tensor, top_k: int) -> Tensor:
    """A sub-vector [l] from logits [h]: vectors of the bank, weighted by a softmax over the largest ``top_k``."""
    values: list[float] = logits.tolist()
    largest = sorted(range(len(values)), key=lambda i: -values[i])[:top_k]
    exponentials = [math.exp(values[i]) for i in largest]
    vector = bank.new_zeros(bank.shape[1])
    for i, exponential in zip(largest, exponentials, strict=True):
        vector = vector + exponential / sum(exponentials) * bank[i]
    return vector


def vblora_update(logits_A: Tensor, logits_B: Tensor, bank: Tensor, *, top_k: int) -> Tensor:
    """The sum over the rank of outer products of columns and rows, each joined from sub-vectors.

    Shapes: logits of A [r, in / l, h], of B [out / l, r, h]; bank [h, l].
    """
    rank = logits_A.shape[0]
    update = None
    for k in range(rank):
        row = torch.cat([mixed(logits, bank, top_k) for logits in logits_A[k]])
        column = torch.cat([mixed(logits[k], bank, top_k) for logits in logits_B])
        outer = column.unsqueeze(1) * row.unsqueeze(0)
        update = outer if update is None else update + outer
    assert update is not None  # the rank is positive
    return update
