"""Packs: the documents of a micro-batch end to end in one row, without padding, a shared prefix only once.

    documents  a0 a1 a2 a3 | a0 a1 b2 b3 | c0 c1 c2
    tokens     a0 a1 a2 a3 |       b2 b3 | c0 c1 c2      the second document goes on behind a1
    positions   0  1  2  3 |        2  3 |  0  1  2
    labels      -  -  -  a3|        -  b3|  -  c1 c2     a document's first token here is never a label

Instructions begin with the same words, and in a causal model the states of a prefix do not depend on what follows. So
a document does not repeat the tokens that the document before has too. Loss and gradients equal those of whole
documents; under dropout, documents with a shared prefix drop the same tokens of the prefix.

The model predicts each label from the position before, so the missing first labels keep the loss inside documents.
``lengths`` and ``shared`` keep attention inside documents (``bishare/models/packed_attention.py``).

Shapes: k documents of n tokens in all, shared tokens counted once; tensors [1, n], ``lengths`` and ``shared`` [k].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bishare.data.encoding import NO_LABEL

MIN_SHARED = 8
"""Tokens. Fewer shared tokens save as much as attention then pays to put the keys of documents together."""


def pack(input_ids: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
    """The batch of these documents, each given by its tokens and its labels [length].

    A document shares tokens with the document before; in the order of :func:`sort_by_prefix` the most.
    """
    shared = [0, *map(num_shared, input_ids, input_ids[1:], labels[1:])]
    own_ids, own_labels, positions = [], [], []
    for ids, label, start in zip(input_ids, labels, shared, strict=True):
        own_ids.append(ids[start:].to(torch.int64))
        own_labels.append(label[start:].to(torch.int64))
        positions.append(torch.arange(start, len(ids)))
    lengths = torch.tensor(list(map(len, own_ids)))
    packed_labels = torch.cat(own_labels)
    # The position before a document's first token belongs to another document and must not predict the token.
    packed_labels[torch.cumsum(lengths, 0) - lengths] = NO_LABEL
    return {
        "input_ids": torch.cat(own_ids)[None],
        "attention_mask": torch.ones(1, len(packed_labels), dtype=torch.int64),
        "position_ids": torch.cat(positions)[None],
        "labels": packed_labels[None],
        "lengths": lengths,
        "shared": torch.tensor(shared),
    }


def sort_by_prefix(input_ids: Sequence[Tensor]) -> list[int]:
    """Positions of these documents in lexicographic order, in which neighbours share the most tokens."""
    # The bytes of big-endian numbers sort as the numbers do, and are compared many at a time.
    keys = [ids.numpy().astype(">u4").tobytes() for ids in input_ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def num_shared(before: Tensor, ids: Tensor, labels: Tensor) -> int:
    """Tokens at the front of a document that need not be repeated: the same as in the document ``before``.

    The position that predicts the first label is always computed anew: the position has a loss of its own.
    """
    labelled = (labels[1:] != NO_LABEL).nonzero()
    end = min(len(before), int(labelled[0]) if len(labelled) else len(ids) - 1)
    # The cumulative product stays 1 up to the first difference.
    same = int((before[:end] == ids[:end]).cumprod(0).sum())
    return same if same >= MIN_SHARED else 0


def unpack(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The same documents as rows padded on the right [k, longest], for models that cannot keep packed ones apart."""
    lengths = batch["lengths"].tolist()
    ids, labels = torch.split(batch["input_ids"][0], lengths), torch.split(batch["labels"][0], lengths)
    whole: list[Tensor] = []
    whole_labels, masks = [], []
    for own_ids, own_labels, start in zip(ids, labels, batch["shared"].tolist(), strict=True):
        # The shared tokens stand in the whole document before; their labels belong to the documents before.
        whole.append(torch.cat((whole[-1][:start], own_ids)) if start else own_ids)
        whole_labels.append(torch.cat((own_labels.new_full((start,), NO_LABEL), own_labels)))
        masks.append(torch.ones_like(whole[-1]))
    rest = dict(batch)
    for name in ("lengths", "shared", "position_ids"):
        rest.pop(name, None)
    return {
        **rest,
        "input_ids": pad_sequence(whole, batch_first=True, padding_value=0),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_value=0),
        "labels": pad_sequence(whole_labels, batch_first=True, padding_value=NO_LABEL),
    }
