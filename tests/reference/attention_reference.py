"""Causal attention of the documents of a pack, row by row of the score matrix (Vaswani et al., 2017, eq. 1).

out_i = sum_j softmax_j(s q_i · k_j) v_j    over the keys j that the token i of a document sees
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], shared: list[int], scale: float) -> Tensor:
    """[b, n, h, d] from q [b, h, n, d] and k, v [b, h_kv, n, d]; heads in a row share a key."""
    groups = q.shape[1] // k.shape[1]
    rows = []
    for query, keys, values in zip(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), strict=True):
        outputs, seen, end = [], list[int](), 0
        for length, start in zip(lengths, shared, strict=True):
            seen = seen[:start]
            for token in range(end, end + length):
                seen.append(token)
                scores = scale * torch.einsum("hd,hjd->hj", query[:, token], keys[:, seen])
                outputs.append(torch.einsum("hj,hjd->hd", scores.softmax(-1), values[:, seen]))
            end += length
        rows.append(torch.stack(outputs))
    return torch.stack(rows)
