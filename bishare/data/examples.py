"""Tokenised examples in two flat arrays, and the batch that a pack of them becomes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from bishare.data.balancing import deal_by_new_tokens, deal_by_padded_tokens
from bishare.data.packing import alike_together, num_shared
from bishare.data.packing import pack as end_to_end
from bishare.data.prompts import NO_LABEL, Example

PAD_TO_MULTIPLE_OF = 8  # matrix products on GPUs are fastest at such lengths


class Pack(NamedTuple):
    """The examples of one micro-batch."""

    indices: tuple[int, ...]
    num_step_labels: int | None = None
    """Labels in the whole optimizer step that the pack belongs to; None outside training."""


class Examples(Dataset[dict[str, Any]]):
    """A data set indexed by ``Pack``; item: a batch, padded on the right or packed end to end (``packing.py``).

    A padded batch holds ``input_ids``, ``attention_mask`` and ``labels`` ``[b, n]`` (int64) and, if the pack has it,
    ``num_step_labels`` (int). Padded rows are sorted by length, the longest first.

    Args:
        examples: The tokenised examples.
        pad_token_id: Token that fills short rows; it is masked and carries no label.
        packing: Put the examples of a pack end to end instead of padding them.
    """

    def __init__(self, examples: Sequence[Example], *, pad_token_id: int, packing: bool = False) -> None:
        self.pad_token_id, self.packing = pad_token_id, packing
        self.lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        # Flat arrays rather than lists: an eighth of the memory, and worker processes share it.
        self.input_ids = _flat([example.input_ids for example in examples])
        self.labels = _flat([example.labels for example in examples])
        self.num_labels = np.array([count_labels(example) for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, pack: Pack) -> dict[str, Any]:
        batch = self._packed(pack.indices) if self.packing else self._padded(pack.indices)
        if pack.num_step_labels is not None:
            batch["num_step_labels"] = pack.num_step_labels
        return batch

    def deal(self, indices: Sequence[int], num_packs: int, num_devices: int = 1) -> list[list[int]]:
        """Deal some examples into packs, of which so many at a time run side by side; the costliest pack first."""
        lengths = self.lengths[indices].tolist()
        if self.packing:
            ids, labels = self._documents(indices)
            packs = deal_by_new_tokens(
                lengths,
                alike_together(ids),
                lambda before, place: num_shared(ids[before], ids[place], labels[place]),
                num_packs,
                num_devices,
            )
        else:
            packs = deal_by_padded_tokens(lengths, num_packs)
        return [[indices[place] for place in pack] for pack in packs]

    def _documents(self, indices: Sequence[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Tokens and labels of some examples, [length] each."""
        spans = [slice(self.offsets[index], self.offsets[index + 1]) for index in indices]
        ids, labels = ([torch.from_numpy(flat[span]) for span in spans] for flat in (self.input_ids, self.labels))
        return ids, labels

    def _packed(self, indices: Sequence[int]) -> dict[str, Any]:
        ids, labels = self._documents(indices)
        order = alike_together(ids)
        return dict(end_to_end([ids[place] for place in order], [labels[place] for place in order]))

    def _padded(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = sorted(indices, key=lambda index: -self.lengths[index])
        width = -(-int(self.lengths[rows[0]]) // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
        labels = torch.full((len(rows), width), NO_LABEL)
        for place, index in enumerate(rows):
            length, span = self.lengths[index], slice(self.offsets[index], self.offsets[index + 1])
            input_ids[place, :length] = torch.from_numpy(self.input_ids[span])
            attention_mask[place, :length] = 1
            labels[place, :length] = torch.from_numpy(self.labels[span])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def count_labels(example: Example) -> int:
    """Labels that carry loss: the first token is never predicted."""
    return sum(label != NO_LABEL for label in example.labels[1:])


def _flat(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    return np.concatenate([np.array(row, dtype=np.int32) for row in rows])
