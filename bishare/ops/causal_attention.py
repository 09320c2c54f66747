"""Causal attention for bfloat16 training on a CPU: torch's flash kernel forward, matrix products backward.

    P = exp(q kᵀ s - l)     dP = do vᵀ     dS = P ∘ (dP - rowsum(dP ∘ P))
    dq = s dS k             dk = s dSᵀ q   dv = Pᵀ do                        (Dao et al., 2022, algorithm 4)

s is the scale of the scores and l the logarithm of a row's sum, returned by the kernel. The kernel's own backward pass
takes two to four times as long. A document may continue a prefix of the document before (``data/packing.py``).

A single product gives the exponent: -l / s stands in two more columns of q, against ones in k, so the exponent is
summed and scaled in fp32 and rounded once, after the subtraction. Scores rounded before the subtraction would be off
by 2^-9 of their value: in a row with large scores, several per cent of P. Keys that a query must not see are left out
in the same product: several short documents stand together, with a column for each (:class:`Block`).

Kept for the backward pass: q, k, v and l.

Shapes: q, do [b, h, n, d], k, v [b, h_kv, n, d], l [b, h_kv, g, n], where h = g h_kv; heads that share a key are rows
of one product.
"""

from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_QUERIES = 256
"""Queries whose P exists at once, few enough for P to stay in the processor's cache."""
UNSEEN = -(2.0**14)
"""Approximate exponent where a query does not see a key."""


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, lengths: list[int], shared: list[int], scale: float | None
) -> Tensor:
    """Causal attention inside each document of every row.

    Args:
        query: [b, h, n, d].
        key: [b, h_kv, n, d].
        value: [b, h_kv, n, d].
        lengths: Tokens of each document, together n.
        shared: For each document, how many tokens of the document before it continues.
        scale: Scale of the scores; 1 / sqrt(d) if None.

    Returns:
        [b, n, h, d].
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    return _CausalAttention.apply(query, key, value, lengths, shared, scale)  # type: ignore[no-any-return, no-untyped-call]


def with_prefixes(part: Tensor, lengths: list[int], shared: list[int]) -> list[Tensor]:
    """Keys or values [..., shared + length, d] of each document, from the keys or values of all [..., n, d]."""
    found: list[Tensor] = []
    for own, start in zip(torch.split(part, lengths, -2), shared, strict=True):
        found.append(torch.cat((found[-1][..., :start, :], own), -2) if start else own)
    return found


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], shared: list[int], scale: float
    ) -> Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        b, h, n, d = q.shape
        num_keys = k.shape[1]
        out = q.new_empty(b, n, h, d)
        log_sums = q.new_empty(b, num_keys, h // num_keys, n, dtype=torch.float32)
        q_by_key = torch.unflatten(q, 1, (num_keys, -1))
        for row in range(b):
            documents = zip(
                with_prefixes(k[row], lengths, shared),
                with_prefixes(v[row], lengths, shared),
                lengths,
                shared,
                strict=True,
            )
            first = 0
            for keys, values, length, start in documents:
                tokens = slice(first, first + length)
                # Without a prefix the kernel's own causal mask fits.
                mask = _mask(length, start) if start else None
                keys = keys.unsqueeze(1).expand(-1, h // num_keys, -1, -1)
                values = values.unsqueeze(1).expand(-1, h // num_keys, -1, -1)
                result, log_sums[row, :, :, tokens] = flash(
                    q_by_key[row, :, :, tokens], keys, values, 0.0, mask is None, attn_mask=mask, scale=scale
                )
                out[row, tokens] = result.flatten(0, 1).transpose(0, 1)
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
        # -l / s as a sum of two bfloat16 numbers, which together hold 16 bits of the fp32 value.
        shift = log_sums / -ctx.scale
        high = shift.to(q.dtype)
        shifts = torch.stack((high, (shift - high.float()).to(q.dtype)), -1)
        q_by_key = torch.unflatten(q, 1, (num_keys, -1))
        g_out_by_key = torch.unflatten(gradient.transpose(1, 2), 1, (num_keys, -1))
        g_q_by_key = torch.unflatten(g_q, 1, (num_keys, -1))
        k_and_ones = torch.cat((k, k.new_ones(*k.shape[:-1], 2)), -1)
        for row in range(len(q)):
            for block in ctx.blocks:
                tokens = block.queries
                g_queries, g_keys, g_values = _block_gradients(
                    q_by_key[row, :, :, tokens],
                    shifts[row, :, :, tokens],
                    g_out_by_key[row, :, :, tokens],
                    _gathered(k_and_ones[row], block.keys),
                    _gathered(v[row], block.keys),
                    block.columns,
                    ctx.scale,
                )
                g_q_by_key[row, :, :, tokens] = g_queries
                # Several blocks may read the same key, so the gradients of keys and values are added up.
                first = 0
                for run in block.keys:
                    last = first + run.stop - run.start
                    g_k[row, :, run] += g_keys[:, first:last]
                    g_v[row, :, run] += g_values[:, first:last]
                    first = last
        return g_q.mul_(ctx.scale), g_k.mul_(ctx.scale), g_v, None, None, None


def _mask(length: int, start: int) -> Tensor:
    """[length, start + length]: minus infinity where a key comes after the query, else zero."""
    return torch.full((length, start + length), float("-inf")).triu_(start + 1)


def _gathered(part: Tensor, runs: list[slice]) -> Tensor:
    """The tokens of these runs [h_kv, m, d] from all tokens [h_kv, n, d]; a single run is a view."""
    if len(runs) == 1:
        return part[:, runs[0]]
    return torch.cat([part[:, run] for run in runs], 1)


def _block_gradients(
    q: Tensor,
    shifts: Tensor,
    g: Tensor,
    keys: Tensor,
    values: Tensor,
    columns: tuple[Tensor, Tensor] | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a block's queries [h_kv, g, n, d] and keys, both without the scale, and values [h_kv, m, d].

    Args:
        q: Queries [h_kv, g, n, d].
        shifts: -l / s as a sum of two [h_kv, g, n, 2].
        g: Gradient of the output [h_kv, g, n, d].
        keys: Keys with two columns of ones [h_kv, m, d + 2]; the last n are keys of the same tokens as the queries.
        values: [h_kv, m, d].
        columns: As in :class:`Block`.
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
    # P has the form of a softmax's result, so its derivative gives dS without a buffer for rowsum(dP ∘ P).
    dS = torch._softmax_backward_data(torch.bmm(g_rows, values.mT), P, -1, P.dtype)
    g_q = torch.bmm(dS, keys[..., :d]).view(num_keys, groups, n, d)
    return g_q, torch.bmm(dS.mT, rows[..., :d]), torch.bmm(P.mT, g_rows)


class Block(NamedTuple):
    """Queries whose gradients are formed together: of several short documents, or a part of a long document."""

    queries: slice
    keys: list[slice]
    """The keys that any of the queries sees; the last run holds the keys of the queries' own tokens."""
    columns: tuple[Tensor, Tensor] | None
    """For c documents, columns of the queries [n, c] and of the keys [m, c].

    A query has 1 in the column of its document. A key that a document does not see has a large negative number there,
    so the product of both takes P to zero."""


_Document = tuple[slice, list[slice]]
"""A document's own tokens, and the runs of tokens that it continues."""


@lru_cache(maxsize=8)  # all layers have the same documents, and layers that are computed again ask again
def blocks_of(lengths: tuple[int, ...], shared: tuple[int, ...]) -> list[Block]:
    """The blocks of documents of these lengths and shared prefixes."""
    documents: list[_Document] = []
    end = 0
    for length, start in zip(lengths, shared, strict=True):
        own, before = documents[-1] if documents else (slice(0), [])
        documents.append((slice(end, end + length), _first([*before, own], start)))
        end += length
    found: list[Block] = []
    short: list[_Document] = []
    for own, before in documents:
        if short and own.stop - short[0][0].start > MAX_QUERIES:
            found.append(_joint_block(short))
            short = []
        if own.stop - own.start <= MAX_QUERIES:
            short.append((own, before))
            continue
        # A long document is cut, and each part sees the document's tokens up to its own end.
        for begin in range(own.start, own.stop, MAX_QUERIES):
            queries = slice(begin, min(begin + MAX_QUERIES, own.stop))
            found.append(Block(queries, [*before, slice(own.start, queries.stop)], None))
    if short:
        found.append(_joint_block(short))
    return found


def _first(runs: list[slice], count: int) -> list[slice]:
    """The first ``count`` places of these runs."""
    found = []
    for run in runs:
        if count > 0:
            found.append(slice(run.start, min(run.stop, run.start + count)))
            count -= run.stop - run.start
    return found


def _joint_block(documents: list[_Document]) -> Block:
    """The block of several short documents side by side."""
    start, end = documents[0][0].start, documents[-1][0].stop
    seen = torch.zeros(len(documents), end, dtype=torch.bool)
    for row, (own, before) in zip(seen, documents, strict=True):
        for run in (*before, own):
            row[run] = True
    places = seen.any(0).nonzero()[:, 0].tolist()
    keys = [*_runs([place for place in places if place < start]), slice(start, end)]
    if len(documents) == 1:
        return Block(slice(start, end), keys, None)
    of_queries = seen[:, start:end].T.float()
    of_keys = UNSEEN * (~seen[:, places]).T.float()
    return Block(slice(start, end), keys, (of_queries, of_keys))


def _runs(places: list[int]) -> list[slice]:
    """The runs of neighbours in ascending places."""
    found = []
    # In a run of neighbours, place minus index stays constant.
    for _, run in groupby(enumerate(places), lambda item: item[1] - item[0]):
        members = [place for _, place in run]
        found.append(slice(members[0], members[-1] + 1))
    return found
