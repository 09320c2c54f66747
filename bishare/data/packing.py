"""Packs: the documents of a micro-batch end to end in one row, without padding.

    tokens    a0 a1 a2 | b0 b1 | c0 c1 c2
    positions  0  1  2 |  0  1 |  0  1  2
    labels     -  a1 a2|  -  b1|  -  c1 c2      a document's first token is never a label

The model predicts each label from the position before it, so the missing first labels keep the loss inside documents;
``lengths`` keeps attention inside them (``bishare/attention.py``).

Shapes: k documents of together n tokens; every tensor of the batch but ``lengths`` [k] is [1, n].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NO_LABEL = -100


def pack(input_ids: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
    """The batch of these documents, each given by its tokens and its labels [length]."""
    lengths = torch.tensor([len(ids) for ids in input_ids])
    packed = torch.cat(list(labels)).to(torch.int64)
    packed[torch.cumsum(lengths, 0) - lengths] = NO_LABEL
    return {
        "input_ids": torch.cat(list(input_ids)).to(torch.int64)[None],
        "attention_mask": torch.ones(1, len(packed), dtype=torch.int64),
        "position_ids": torch.cat([torch.arange(len(ids)) for ids in input_ids])[None],
        "labels": packed[None],
        "lengths": lengths,
    }


def unpack(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The same documents as rows padded on the right, for models that cannot keep packed ones apart."""
    lengths = batch["lengths"].tolist()

    def rows(name: str, fill: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(batch[name][0].split(lengths), batch_first=True, padding_value=fill)

    padded = {"input_ids": rows("input_ids", 0), "attention_mask": rows("attention_mask", 0)}
    others = {name: value for name, value in batch.items() if name not in ("lengths", "position_ids")}
    return {**others, **padded, "labels": rows("labels", NO_LABEL)}
