"""Causal attention in training on a CPU in bfloat16: torch's flash kernel forwards, matrix products backwards.

    P = exp(q kᵀ s - l)     dP = do vᵀ     dS = P ∘ (dP - rowsum(dP ∘ P))
    dq = s dS k             dk = s dSᵀ q   dv = Pᵀ do                        (Dao et al., 2022, algorithm 4)

s is the scale of the scores and l the logarithm of a row's sum, which the kernel gives. The kernel's own backward pass
takes two to four times as long. Documents may go on behind tokens of the one before them (``data/packing.py``).

The exponent comes out of one product, for -l / s stands in two more columns of q beside ones in k: it is summed and
scaled in fp32 and rounded once, behind the subtraction. Scores that are rounded before would be off by 2^-9 of
themselves, which in a row with large ones is several per cent of P. What a query doesn't see is left out in the same
way: short documents stand in one product, with a column for each (:class:`Block`).

Kept: q, k, v and l. Shapes: q, do [b, h, n, d], k, v [b, h_kv, n, d], l [b, h_kv, g, n], where h = g h_kv, and heads
that share a key are rows of one product.
"""

from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_QUERIES = 256
"""Queries whose P exists at once, so that it stays in the processor's cache."""
UNSEEN = -(2.0**14)
"""The exponent where a query doesn't see a key, about."""


def is_faster(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether :func:`causal_attention` is faster here than torch's own, and can say the same."""
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    here = query.device.type == "cpu" and query.dtype == key.dtype == value.dtype == torch.bfloat16
    alike = query.shape[-1] == key.shape[-1] == value.shape[-1] and all(t.stride(-1) == 1 for t in (query, key, value))
    return trained and here and alike and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, lengths: list[int], shared: list[int], scale: float | None
) -> Tensor:
    """Causal attention inside each document of every row.

    Args:
        query: [b, h, n, d].
        key: [b, h_kv, n, d].
        value: [b, h_kv, n, d].
        lengths: Tokens of each document, together n.
        shared: How many tokens of the document before it each goes on behind.
        scale: Of the scores; 1 / sqrt(d) if None.

    Returns:
        [b, n, h, d].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Causal.apply(query, key, value, lengths, shared, scale)  # type: ignore[no-any-return, no-untyped-call]


def whole(part: Tensor, lengths: list[int], shared: list[int]) -> list[Tensor]:
    """The keys or values [..., shared + length, d] of each document, from those of all [..., n, d]."""
    found: list[Tensor] = []
    for own, start in zip(torch.split(part, lengths, -2), shared, strict=True):
        found.append(torch.cat((found[-1][..., :start, :], own), -2) if start else own)
    return found


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], shared: list[int], scale: float
    ) -> Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        (b, h, n, d), num_keys = q.shape, k.shape[1]
        out = q.new_empty(b, n, h, d)
        log_sums = q.new_empty(b, num_keys, h // num_keys, n, dtype=torch.float32)
        by_key = torch.unflatten(q, 1, (num_keys, -1))
        for row in range(b):
            first = 0
            for k_own, v_own, length, start in zip(
                whole(k[row], lengths, shared), whole(v[row], lengths, shared), lengths, shared, strict=True
            ):
                its = slice(first, first + length)
                mask = _mask(length, start) if start else None
                keys, values = (part.unsqueeze(1).expand(-1, h // num_keys, -1, -1) for part in (k_own, v_own))
                result, log_sums[row, :, :, its] = flash(
                    by_key[row, :, :, its], keys, values, 0.0, mask is None, attn_mask=mask, scale=scale
                )
                out[row, its] = result.flatten(0, 1).transpose(0, 1)
                first += length
        ctx.save_for_backward(q, k, v, log_sums)
        ctx.blocks, ctx.scale = blocks_of(tuple(lengths), tuple(shared)), scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_sums = ctx.saved_tensors
        num_keys = k.shape[1]
        g_q, g_k, g_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)  # strides as theirs
        shift = log_sums / -ctx.scale
        high = shift.to(q.dtype)
        shifts = torch.stack((high, (shift - high.float()).to(q.dtype)), -1)
        queries, g_out, by_key = (
            torch.unflatten(part, 1, (num_keys, -1)) for part in (q, gradient.transpose(1, 2), g_q)
        )
        beside = torch.cat((k, k.new_ones(*k.shape[:-1], 2)), -1)
        for row in range(len(q)):
            for block in ctx.blocks:
                its = block.queries
                document = queries[row, :, :, its], shifts[row, :, :, its], g_out[row, :, :, its]
                keys, values = (
                    part[row, :, block.keys[0]]
                    if len(block.keys) == 1
                    else torch.cat([part[row, :, run] for run in block.keys], 1)
                    for part in (beside, v)
                )
                of_queries, *of_others = _of_block(*document, keys, values, block.columns, ctx.scale)
                by_key[row, :, :, its] = of_queries
                sizes = [run.stop - run.start for run in block.keys]
                for total, more in zip((g_k, g_v), of_others, strict=True):
                    for run, piece in zip(block.keys, torch.split(more, sizes, 1), strict=True):
                        total[row, :, run] += piece
        return g_q.mul_(ctx.scale), g_k.mul_(ctx.scale), g_v, None, None, None


def _mask(length: int, start: int) -> Tensor:
    """[length, start + length]: minus infinity where a key comes after the query, else zero."""
    return torch.full((length, start + length), float("-inf")).triu_(start + 1)


def _of_block(
    q: Tensor,
    shifts: Tensor,
    g: Tensor,
    keys: Tensor,
    values: Tensor,
    columns: tuple[Tensor, Tensor] | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a block's queries [h_kv, g, n, d] and keys, both but for the scale, and values [h_kv, m, d].

    Args:
        q: Queries [h_kv, g, n, d].
        shifts: -l / s as a sum of two [h_kv, g, n, 2].
        g: Gradient of the output [h_kv, g, n, d].
        keys: Keys with two columns of ones [h_kv, m, d + 2], the last n those of the queries' own tokens.
        values: [h_kv, m, d].
        columns: As :class:`Block` has them.
        scale: s.
    """
    num_keys, groups, n, d = q.shape
    beside = [q, shifts]
    if columns is not None:
        of_queries, of_keys = columns[0].to(q.dtype), (columns[1] / scale).to(q.dtype)
        beside.append(of_queries.expand(num_keys, groups, -1, -1))
        keys = torch.cat((keys, of_keys.expand(num_keys, -1, -1)), -1)
    rows = torch.cat(beside, -1).flatten(1, 2)
    g_rows = g.reshape(num_keys, -1, d)
    P = q.new_empty(num_keys, groups * n, keys.shape[1])
    torch.baddbmm(P, rows, keys.mT, beta=0, alpha=scale, out=P).exp_()
    P.view(num_keys, groups, n, -1).tril_(keys.shape[1] - n)
    dS = torch._softmax_backward_data(torch.bmm(g_rows, values.mT), P, -1, P.dtype)
    g_q = torch.bmm(dS, keys[..., :d]).view(num_keys, groups, n, d)
    return g_q, torch.bmm(dS.mT, rows[..., :d]), torch.bmm(P.mT, g_rows)


class Block(NamedTuple):
    """Some queries whose gradients are formed at once: of several short documents, or a part of a long one."""

    queries: slice
    keys: list[slice]
    """The keys that any of them sees; the last ones are those of the same tokens."""
    columns: tuple[Tensor, Tensor] | None
    """Of queries [n, c] and keys [m, c], for c documents: 1 in a query's own, and far below zero at the keys that a
    document doesn't see, so that the product of both takes P to zero there."""


@lru_cache(maxsize=8)  # all layers have the same, and layers that run again come back to it
def blocks_of(lengths: tuple[int, ...], shared: tuple[int, ...]) -> list[Block]:
    """The blocks of these documents."""
    documents: list[tuple[slice, list[slice]]] = []  # own tokens, and what it sees before them
    end = 0
    for length, start in zip(lengths, shared, strict=True):
        own, before = documents[-1] if documents else (slice(0), [])
        documents.append((slice(end, end + length), _first([*before, own], start)))
        end += length
    found, several = [], list[tuple[slice, list[slice]]]()
    for own, before in documents:
        if several and own.stop - several[0][0].start > MAX_QUERIES:
            found.append(_together(several))
            several = []
        if own.stop - own.start <= MAX_QUERIES:
            several.append((own, before))
            continue
        for begin in range(own.start, own.stop, MAX_QUERIES):
            queries = slice(begin, min(begin + MAX_QUERIES, own.stop))
            found.append(Block(queries, [*before, slice(own.start, queries.stop)], None))
    return [*found, _together(several)] if several else found


def _first(runs: list[slice], count: int) -> list[slice]:
    """The first ``count`` places of these runs."""
    found = []
    for run in runs:
        if count > 0:
            found.append(slice(run.start, min(run.stop, run.start + count)))
            count -= run.stop - run.start
    return found


def _together(documents: list[tuple[slice, list[slice]]]) -> Block:
    """The block of some documents side by side."""
    start, end = documents[0][0].start, documents[-1][0].stop
    seen = torch.zeros(len(documents), end, dtype=torch.bool)
    for its, (own, before) in zip(seen, documents, strict=True):
        for run in (*before, own):
            its[run] = True
    places = seen.any(0).nonzero()[:, 0].tolist()
    keys = [*_runs([place for place in places if place < start]), slice(start, end)]
    if len(documents) == 1:
        return Block(slice(start, end), keys, None)
    of_queries = torch.stack([seen[i, start:end] for i in range(len(documents))], 1).float()
    of_keys = UNSEEN * (~seen[:, places]).T.float()
    return Block(slice(start, end), keys, (of_queries, of_keys))


def _runs(places: list[int]) -> list[slice]:
    """The runs of neighbours in ascending places."""
    runs = [list(run) for _, run in groupby(enumerate(places), lambda its: its[1] - its[0])]
    return [slice(run[0][1], run[-1][1] + 1) for run in runs]
