from collections import Counter

import pytest

from bishare.data.packing import unpack
from bishare.data.prompts import render_prompt
from bishare.data.rows import Row
from bishare.errors import UserError
from tests.data.given import train_and_watch


def texts(tokenizer, batches):
    """The examples of some batches, as text."""
    return Counter(
        tokenizer.decode(ids[mask.bool()])
        for batch in batches
        for ids, mask in zip(*(unpack(batch)[name] for name in ("input_ids", "attention_mask")), strict=True)
    )


def whole_texts(tokenizer, rows):
    return Counter(f"{render_prompt(tokenizer, row, 'alpaca')}{row.output}</s>" for row in rows)


def test_each_row_stands_in_one_half(make, tokenizer, rows):
    data = make()
    data.setup("fit")
    train, validation = texts(tokenizer, data.train_dataloader()), texts(tokenizer, data.val_dataloader())
    assert sum(validation.values()) == 6
    assert train + validation == whole_texts(tokenizer, rows)


def test_split_depends_on_the_seed_alone(make, tokenizer):
    def held_out(**options):
        data = make(**options)
        data.setup("validate")
        return texts(tokenizer, data.val_dataloader())

    assert held_out() == held_out(max_examples=10)
    assert held_out() != held_out(seed=1)


def test_max_examples_limits_training(make):
    data = make(max_examples=20)
    data.setup("fit")
    assert sum(len(batch["lengths"]) for batch in data.train_dataloader()) == 20


def test_no_held_out_rows_means_no_validation(make):
    data = make(num_validation=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match="num_validation is 0"):
        data.predict_dataloader()


def test_prompts_and_references_are_held_out_rows(make, tokenizer, rows):
    data = make(num_validation=9)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    pairs = [pair for batch in batches for pair in zip(batch["prompt"], batch["reference"], strict=True)]
    assert len(pairs) == 9
    assert set(pairs) <= {(data.render_prompt(row.instruction), row.output) for row in rows}
    ids, mask = batches[0]["input_ids"][0], batches[0]["attention_mask"][0]
    assert tokenizer.decode(ids[mask.bool()]) == batches[0]["prompt"][0]


def test_examples_without_room_are_dropped_and_counted(make, rows, caplog):
    long = [Row("word " * 300, "", "answer") for _ in range(30)]
    data = make([*rows, *long], num_validation=30)
    data.setup("fit")
    num_train = sum(len(batch["lengths"]) for batch in data.train_dataloader())
    num_validation = sum(len(batch["lengths"]) for batch in data.val_dataloader())
    assert num_train + num_validation == 60
    assert 0 < num_validation < 30
    assert sum(len(batch["prompt"]) for batch in data.predict_dataloader()) == num_validation
    report = next(message for message in caplog.messages if message.startswith("Data:"))
    assert f"90 rows give {num_train} training and {num_validation} validation examples (30 dropped" in report
    assert "\n" not in report


def test_nothing_left_to_train_is_an_error(make):
    with pytest.raises(UserError, match=r"None of the 6 validation examples has a token of its answer .*max_length 10"):
        make(max_length=10).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_validation": 60}, "num_validation is 60, but there are 60 rows"),
        ({"num_validation": -1}, "num_validation is -1"),
    ],
)
def test_impossible_options_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options).setup("fit")


def test_two_processes_share_the_data_of_one(tmp_path, make, tokenizer, rows):
    (alone,) = train_and_watch(tmp_path / "one", tokenizer, make(num_validation=5))
    ranks = train_and_watch(tmp_path / "two", tokenizer, make(num_validation=5), devices=2, strategy="ddp_fork")
    assert len(ranks) == 2
    assert Counter(ranks[0]["val"] + ranks[1]["val"]) == Counter(alone["val"])
    assert Counter(ranks[0]["train"] + ranks[1]["train"]) == Counter(alone["train"])
    assert sum(Counter(alone["train"] + alone["val"]).values()) == len(rows)
    # the same optimizer steps, each with the same labels in all
    assert {tuple(step) for rank in ranks for step in rank["steps"]} == {tuple(step) for step in alone["steps"]}
    assert ranks[0]["num_steps"] == ranks[1]["num_steps"] == alone["num_steps"]


def test_packed_and_padded_steps_hold_equal_examples(make, tokenizer):
    packed, padded = make(), make(packing=False)
    for data in (packed, padded):
        data.setup("fit")

    def documents(batches):
        """Tokens and labels of every example, without padding, in a fixed order."""
        rows = []
        for batch in batches:
            batch = unpack(batch) if "lengths" in batch else batch
            for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
                rows.append((ids[mask == 1].tolist(), labels[mask == 1].tolist()))
        return sorted(rows)

    ours, theirs = list(packed.train_dataloader()), list(padded.train_dataloader())
    assert len(ours) == len(theirs) == packed.steps_per_epoch * packed.accumulation
    assert all(batch["input_ids"].shape == (1, sum(batch["lengths"])) for batch in ours)
    assert not any("lengths" in batch for batch in theirs)
    for start in range(0, len(ours), packed.accumulation):
        step = slice(start, start + packed.accumulation)
        assert documents(ours[step]) == documents(theirs[step])
        assert {b["num_step_labels"] for b in ours[step]} == {b["num_step_labels"] for b in theirs[step]}
