"""Bi-Share LoRA and LoRA as written in the papers: a function per equation, loops, ``[out, in]`` matrices.

Zhou et al., 2025 (Bi-Share LoRA, ICML 2025), sections 3.2.1 to 3.2.3; Hu et al., 2021 (arXiv:2106.09685), eq. 3.

Shapes: A_s [r, s], B_s [s, r] stored and shared; every function returns a dense update [out, in] without the scale.
"""

import math

import torch
from torch import Tensor


def product(B: Tensor, A: Tensor) -> Tensor:
    """``(B A)[o, i] = sum_k B[o, k] A[k, i]``, a sum over the ranks k."""
    update = B.new_zeros(B.shape[0], A.shape[1])
    for k in range(A.shape[0]):
        update = update + B[:, k].unsqueeze(1) * A[k].unsqueeze(0)
    return update


def window(length: int, size: int, position: str) -> range:
    """The ``size`` indices of ``length`` that a slice keeps."""
    offset = {"center": (length - size) // 2, "top-left": 0, "bottom-right": length - size}[position]
    return range(offset, offset + size)


def slice_update(A_s: Tensor, B_s: Tensor, *, num_in: int, num_out: int, position: str) -> Tensor:
    """Slice sharing: a Linear reads a window of ``A_s [r, max d_in]`` and of ``B_s [max d_out, r]``."""
    columns = window(A_s.shape[1], num_in, position)
    rows = window(B_s.shape[0], num_out, position)
    entries = []
    for o in rows:
        for i in columns:
            entry = A_s.new_zeros(())
            for k in range(A_s.shape[0]):
                entry = entry + B_s[o, k] * A_s[k, i]
            entries.append(entry)
    return torch.stack(entries).reshape(num_out, num_in)


def gate_update(A_s: Tensor, B_s: Tensor, *, G_id: Tensor, G_iu: Tensor, G_od: Tensor, G_ou: Tensor) -> Tensor:
    """Gate sharing: ``G_ou G_od B_s A_s G_iu G_id``, through a single number on both sides.

    Shapes: G_id [1, in], G_iu [s, 1], A_s [r, s], B_s [s, r], G_od [1, s], G_ou [out, 1].
    """
    return product(G_ou, product(G_od, product(B_s, product(A_s, product(G_iu, G_id)))))


def kron(K: Tensor, S: Tensor) -> Tensor:
    """``(K ⊗ S)[i p + k, j q + l] = K[i, j] S[k, l]`` for ``S [p, q]``: the kernel is the outer factor."""
    p, q = S.shape
    rows = []
    for i in range(K.shape[0]):
        for k in range(p):
            entries = []
            for j in range(K.shape[1]):
                for m in range(q):
                    entries.append(K[i, j] * S[k, m])
            rows.append(torch.stack(entries))
    return torch.stack(rows) if rows else S.new_zeros(0, K.shape[1] * q)


def kronecker_update(A_s: Tensor, B_s: Tensor, *, K_A: Tensor, K_B: Tensor, num_in: int, num_out: int) -> Tensor:
    """Kronecker extension (Algorithm 3, and the a_b forms): ``A = K_A ⊗ A_s``, ``B = K_B ⊗ B_s``, cut to size.

    With a rows in ``A_s`` and b rows in ``K_A`` the rank is a b.
    """
    A = kron(K_A, A_s)[:, :num_in]
    B = kron(K_B, B_s)[:num_out, :]
    return product(B, A)


def kronecker_per_rank_update(
    A_s: Tensor, B_s: Tensor, *, K_A: Tensor, K_B: Tensor, num_in: int, num_out: int
) -> Tensor:
    """Section 3.2.3: row i of A is ``K_A[i] ⊗ A_s[i]``, column i of B is ``K_B[:, i] ⊗ B_s[:, i]``."""
    update = A_s.new_zeros(num_out, num_in)
    for i in range(A_s.shape[0]):
        row = kron(K_A[i : i + 1], A_s[i : i + 1])[:, :num_in]
        column = kron(K_B[:, i : i + 1], B_s[:, i : i + 1])[:num_out, :]
        update = update + column * row
    return update


def kernel_repeats(num_features: int, size: int) -> int:
    """``k = ceil(d / d_s)``: the number of copies of the shared factor that cover a dimension."""
    return math.ceil(num_features / size)


def kronecker_ranks(form: str, r: int) -> tuple[int, int]:
    """Rows (a of the shared part, b of the kernel) of the published forms at level rank ``r``."""
    return {"shared": (r, 1), "r_1": (r, 1), "1_r": (1, r), "r_2": (r, 2), "2_r": (2, r)}[form]


def lora_update(A: Tensor, B: Tensor) -> Tensor:
    """LoRA's pair of a weight; also the local level of Bi-Share."""
    return product(B, A)


def bishare_update(*, scale: float, local: Tensor, intra: Tensor, inter: Tensor) -> Tensor:
    """``delta W = s (B_loc A_loc + T(B_intra, A_intra) + T(B_inter, A_inter))``."""
    return scale * (local + intra + inter)
