"""Tokenised examples in two flat arrays, and the batch of a pack of examples.

Shapes: b examples in a pack, n tokens of the longest of them; a padded batch is [b, n], a packed batch [1, tokens].
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bishare.data.balancing import balance_by_new_tokens, balance_by_padded_tokens
from bishare.data.encoding import NO_LABEL, Example
from bishare.data.packing import num_shared, pack, sort_by_prefix

PAD_TO_MULTIPLE_OF = 8  # matrix products on GPUs are fastest at such lengths


class Pack(NamedTuple):
    """The examples of one micro-batch."""

    indices: tuple[int, ...]
    num_step_labels: int | None = None
    """Labels in the whole optimizer step of the pack; None outside training."""


class Examples(Dataset[dict[str, Any]]):
    """A data set indexed by ``Pack``; an item is a batch, padded on the right or packed end to end (``packing.py``).

    A padded batch holds ``input_ids``, ``attention_mask`` and ``labels`` ``[b, n]`` (int64). Padded rows are sorted by
    length, the longest first. In training, a batch also holds ``num_step_labels`` (int).

    Args:
        examples: The tokenised examples.
        pad_token_id: Token that fills short rows; padding is masked and carries no label.
        packing: Put the examples of a pack end to end instead of padding them.
    """

    def __init__(self, examples: Sequence[Example], *, pad_token_id: int, packing: bool = False) -> None:
        self.pad_token_id, self.packing = pad_token_id, packing
        ids, labels, *_ = zip(*examples, strict=True)
        self.lengths = np.array(list(map(len, ids)), dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        # Flat arrays rather than lists: an eighth of the memory, and worker processes share it.
        self.input_ids = _flat(ids)
        self.labels = _flat(labels)
        self.num_labels = np.array(list(map(count_labels, examples)), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, pack: Pack) -> dict[str, Any]:
        batch = self._packed(pack.indices) if self.packing else self._padded(pack.indices)
        if pack.num_step_labels is not None:
            batch["num_step_labels"] = pack.num_step_labels
        return batch

    def make_packs(self, indices: Sequence[int], num_packs: int, num_devices: int = 1) -> list[list[int]]:
        """Partition some examples into packs of nearly equal cost, the costliest pack first.

        Args:
            indices: The examples.
            num_packs: A multiple of the devices.
            num_devices: Packs that run at the same time.
        """
        lengths = self.lengths[indices].tolist()
        if self.packing:
            ids, labels = self._documents(indices)
            packs = balance_by_new_tokens(
                lengths,
                sort_by_prefix(ids),
                lambda before, place: num_shared(ids[before], ids[place], labels[place]),
                num_packs,
                num_devices,
            )
        else:
            packs = balance_by_padded_tokens(lengths, num_packs)
        # The packs hold places in ``indices``.
        return [list(map(indices.__getitem__, places)) for places in packs]

    def _span(self, index: int) -> slice:
        """Where an example lies in the flat arrays."""
        return slice(self.offsets[index], self.offsets[index + 1])

    def _documents(self, indices: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens and labels of some examples, [length] each."""
        ids, labels = [], []
        for span in map(self._span, indices):
            ids.append(torch.from_numpy(self.input_ids[span]))
            labels.append(torch.from_numpy(self.labels[span]))
        return ids, labels

    def _packed(self, indices: Sequence[int]) -> dict[str, Any]:
        ids, labels = self._documents(indices)
        # Neighbours share their prefix: it is computed once.
        order = sort_by_prefix(ids)
        return dict(pack([ids[place] for place in order], [labels[place] for place in order]))

    def _padded(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = sorted(indices, key=lambda index: -self.lengths[index])
        width = -(-int(self.lengths[rows[0]]) // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
        labels = torch.full((len(rows), width), NO_LABEL)
        for place, index in enumerate(rows):
            length, span = self.lengths[index], self._span(index)
            input_ids[place, :length] = torch.from_numpy(self.input_ids[span])
            attention_mask[place, :length] = 1
            labels[place, :length] = torch.from_numpy(self.labels[span])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def count_labels(example: Example) -> int:
    """Labels that carry loss: the first token is never predicted."""
    return len(example.labels[1:]) - example.labels[1:].count(NO_LABEL)


def _flat(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    # Row by row: numpy cannot convert lists of unequal lengths at once.
    return np.concatenate([np.array(row, dtype=np.int32) for row in rows])
