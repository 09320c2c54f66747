"""Packs: the documents of a micro-batch end to end in one row, without padding; what they share stands there once.

    documents  a0 a1 a2 a3 | a0 a1 b2 b3 | c0 c1 c2
    tokens     a0 a1 a2 a3 |       b2 b3 | c0 c1 c2      the second document goes on behind a1
    positions   0  1  2  3 |        2  3 |  0  1  2
    labels      -  -  -  a3|        -  b3|  -  c1 c2     a document's first token here is never a label

The model predicts each label from the position before it, so the missing first labels keep the loss inside documents;
``lengths`` and ``shared`` keep attention inside them (``bishare/attention.py``).

Instructions begin with the same words, and in a causal model the states of a prefix do not depend on what follows. So
a document does not repeat the tokens that it has in common with the one before it. Loss and gradients are those of
whole documents; under dropout, the shared tokens of a pack are dropped alike.

Shapes: k documents of together n tokens without those they share; tensors are [1, n], ``lengths`` and ``shared`` [k].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NO_LABEL = -100
FEWEST_SHARED = 8
"""Tokens; what is saved on fewer costs as much in attention, which has to put keys together."""


def pack(input_ids: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
    """The batch of these documents, each given by its tokens and its labels [length].

    Documents share tokens with their neighbours, so most in the order of :func:`alike_together`.
    """
    shared = [0, *map(num_shared, input_ids, input_ids[1:], labels[1:])]
    own = [ids[start:].to(torch.int64) for ids, start in zip(input_ids, shared, strict=True)]
    lengths = torch.tensor([len(ids) for ids in own])
    packed = torch.cat([its[start:] for its, start in zip(labels, shared, strict=True)]).to(torch.int64)
    packed[torch.cumsum(lengths, 0) - lengths] = NO_LABEL
    return {
        "input_ids": torch.cat(own)[None],
        "attention_mask": torch.ones(1, len(packed), dtype=torch.int64),
        "position_ids": torch.cat([torch.arange(len(ids)) + at for ids, at in zip(own, shared, strict=True)])[None],
        "labels": packed[None],
        "lengths": lengths,
        "shared": torch.tensor(shared),
    }


def alike_together(input_ids: Sequence[Tensor]) -> list[int]:
    """Places of these documents in the order in which neighbours share the most tokens."""
    # The bytes of big-endian numbers sort as the numbers do, and are compared many at a time.
    keys = [ids.numpy().astype(">u4").tobytes() for ids in input_ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def num_shared(before: Tensor, ids: Tensor, labels: Tensor) -> int:
    """Tokens at the front of a document that need not be repeated: the same as in the one before it.

    The position that predicts the first label is never one of them: it has a loss of its own.
    """
    labelled = (labels[1:] != NO_LABEL).nonzero()
    end = min(len(before), int(labelled[0]) if len(labelled) else len(ids) - 1)
    same = int((before[:end] == ids[:end]).cumprod(0).sum())
    return same if same >= FEWEST_SHARED else 0


def unpack(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The same documents as rows padded on the right, for models that cannot keep packed ones apart."""
    ids, labels = (torch.split(batch[name][0], batch["lengths"].tolist()) for name in ("input_ids", "labels"))
    whole: list[Tensor] = []
    whole_labels = []
    for own, its_labels, start in zip(ids, labels, batch["shared"].tolist(), strict=True):
        whole.append(torch.cat((whole[-1][:start], own)) if start else own)
        whole_labels.append(torch.cat((its_labels.new_full((start,), NO_LABEL), its_labels)))

    def rows(values: Sequence[Tensor], fill: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True, padding_value=fill)

    padded = {
        "input_ids": rows(whole, 0),
        "attention_mask": rows([torch.ones_like(document) for document in whole], 0),
        "labels": rows(whole_labels, NO_LABEL),
    }
    of_packs = ("lengths", "shared", "position_ids")
    return {**{name: value for name, value in batch.items() if name not in of_packs}, **padded}
