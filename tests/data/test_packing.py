"""Documents end to end in one row."""

import torch

from bishare.data.encoding import NO_LABEL
from bishare.data.packing import MIN_SHARED, num_shared, pack, sort_by_prefix, unpack

IDS = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
LABELS = [torch.tensor([NO_LABEL, 6, 7]), torch.tensor([8, 9])]


def test_positions_restart_and_first_tokens_are_unlabelled() -> None:
    batch = pack(IDS, LABELS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[NO_LABEL, 6, 7, NO_LABEL, 9]]
    assert batch["lengths"].tolist() == [3, 2]
    assert batch["shared"].tolist() == [0, 0]
    assert LABELS[1].tolist() == [8, 9]


def test_unpacked_documents_are_padded_rows() -> None:
    batch = unpack({**pack(IDS, LABELS), "num_step_labels": 12})
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[NO_LABEL, 6, 7], [NO_LABEL, 9, NO_LABEL]]
    assert set(batch) == {"input_ids", "attention_mask", "labels", "num_step_labels"}


PROMPT = torch.arange(20, 32)


def test_shared_prefix_stands_once() -> None:
    ids = [torch.cat((PROMPT, torch.tensor(end))) for end in ([1, 2], [3, 4, 5], [3, 4, 6])]
    labels = [torch.where(torch.arange(len(row)) < 13, NO_LABEL, row) for row in ids]

    batch = pack(ids, labels)

    assert batch["shared"].tolist() == [0, 12, 12]  # token 12 predicts the first label of the third
    assert batch["input_ids"][0].tolist() == [*PROMPT.tolist(), 1, 2, 3, 4, 5, 3, 4, 6]
    assert batch["position_ids"][0].tolist() == [*range(14), 12, 13, 14, 12, 13, 14]
    assert batch["labels"][0].tolist() == [NO_LABEL] * 13 + [2, NO_LABEL, 4, 5, NO_LABEL, 4, 6]
    whole = unpack(batch)
    for name, rows in (("input_ids", ids), ("labels", labels)):
        assert [row[: len(given)].tolist() for row, given in zip(whole[name], rows, strict=True)] == [
            row.tolist() for row in rows
        ]
    assert whole["attention_mask"].sum(1).tolist() == [len(row) for row in ids]


def test_documents_that_begin_alike_are_neighbours() -> None:
    documents = [[256, 1], [1, 256], [256], [2], [1, 2, 3], [256, 1], [1, 65536]]
    order = sort_by_prefix([torch.tensor(document, dtype=torch.int32) for document in documents])
    assert order == sorted(range(len(documents)), key=documents.__getitem__)


def test_labelled_position_is_never_shared() -> None:
    labels = torch.full((12,), NO_LABEL)
    assert num_shared(PROMPT, PROMPT, labels) == 11  # the last token has to stand somewhere
    labels[10:] = PROMPT[10:]
    assert num_shared(PROMPT, PROMPT, labels) == 9
    assert num_shared(PROMPT, PROMPT, PROMPT) == 0


def test_a_few_common_tokens_are_repeated() -> None:
    labels = torch.full((12,), NO_LABEL)
    for common, expected in ((MIN_SHARED - 1, 0), (MIN_SHARED, MIN_SHARED)):
        before = torch.cat((PROMPT[:common], torch.tensor([1, 2, 3])))
        assert num_shared(before, PROMPT, labels) == expected
