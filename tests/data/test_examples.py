import torch

from bishare.data.encoding import NO_LABEL, Example
from bishare.data.examples import Examples, Pack, count_labels

SHORT = Example([5, 6], [NO_LABEL, 6], cut=False)
LONG = Example(list(range(1, 10)), [NO_LABEL] * 4 + list(range(5, 10)), cut=False)


def test_batch_is_padded_to_multiples_of_eight():
    batch = Examples([SHORT, LONG], pad_token_id=3)[Pack((0, 1), num_step_labels=40)]
    assert batch["input_ids"].tolist() == [[*range(1, 10)] + [3] * 7, [5, 6] + [3] * 14]
    assert batch["attention_mask"].tolist() == [[1] * 9 + [0] * 7, [1] * 2 + [0] * 14]
    assert batch["labels"].tolist() == [LONG.labels + [NO_LABEL] * 7, [NO_LABEL, 6] + [NO_LABEL] * 14]
    assert {value.dtype for value in batch.values() if isinstance(value, torch.Tensor)} == {torch.int64}
    assert batch["num_step_labels"] == 40


def test_pack_without_a_step_has_no_count():
    batch = Examples([SHORT, LONG], pad_token_id=0)[Pack((0,))]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == (1, 8)


def test_labels_are_counted_after_the_shift():
    examples = Examples([SHORT, LONG, Example([1, 2], [1, 2], cut=False)], pad_token_id=0)
    assert examples.num_labels.tolist() == [1, 5, 1]
    assert count_labels(Example([1], [1], cut=False)) == 0


def test_padded_examples_are_split_by_length():
    def example(first, length):
        return Example([first] * 20 + list(range(100, 80 + length)), [NO_LABEL] * 20 + [1] * (length - 20), cut=False)

    rows = [example(first, length) for length in (21, 40) for first in (1, 2)] * 2
    chosen = [6, 3, 0, 1, 7, 4, 2, 5]  # positions in these are not indices
    for packing, alike in ((False, [{2, 3, 6, 7}, {0, 1, 4, 5}]), (True, [{0, 2, 4, 6}, {1, 3, 5, 7}])):
        packs = Examples(rows, pad_token_id=0, packing=packing).make_packs(chosen, 2)
        assert sorted(map(sorted, packs)) == sorted(map(sorted, alike))


def test_packs_that_begin_alike_need_no_waiting():
    rows = [
        Example(ids, [NO_LABEL] * (len(ids) - 1) + ids[-1:], cut=False)
        for ids in ([1] * 60, [2] * 8 + [3] * 92, [2] * 8 + [4] * 52)
    ]
    examples = Examples(rows, pad_token_id=0, packing=True)
    assert sorted(map(sorted, examples.make_packs(range(3), 2, num_devices=1))) == [[0], [1, 2]]
    assert sorted(map(sorted, examples.make_packs(range(3), 2, num_devices=2))) == [[0, 2], [1]]
