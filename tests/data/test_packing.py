"""Documents end to end in one row."""

import torch

from bishare.data.packing import NO_LABEL, pack, unpack

IDS = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
LABELS = [torch.tensor([NO_LABEL, 6, 7]), torch.tensor([8, 9])]


def test_positions_restart_and_no_first_token_is_a_label() -> None:
    batch = pack(IDS, LABELS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[NO_LABEL, 6, 7, NO_LABEL, 9]]
    assert batch["lengths"].tolist() == [3, 2]
    assert LABELS[1].tolist() == [8, 9]


def test_unpacked_documents_are_padded_rows() -> None:
    batch = unpack({**pack(IDS, LABELS), "num_step_labels": 12})
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[NO_LABEL, 6, 7], [NO_LABEL, 9, NO_LABEL]]
    assert set(batch) == {"input_ids", "attention_mask", "labels", "num_step_labels"}
