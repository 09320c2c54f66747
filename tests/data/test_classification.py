"""Files of GLUE's tasks become padded batches with one label a row."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bishare.data import ClassificationData
from bishare.errors import UserError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """One token a letter, with BERT's frame around one or two sentences."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture
def folder(tmp_path):
    """Twenty rows to train on and five to validate on, of several lengths."""
    for split, count in (("train", 20), ("validation", 5)):
        rows = [{"sentence1": "a " * (1 + i % 4), "sentence2": "b c", "label": i % 2} for i in range(count)]
        (tmp_path / f"mrpc_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        scores = [row | {"label": i / 4} for i, row in enumerate(rows)]
        (tmp_path / f"stsb_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    return tmp_path


def build(folder, words, task="mrpc", **options) -> ClassificationData:
    options = {"batch_size": 4, **options}
    data = ClassificationData(task, path=str(folder), tokenizer=words, **options)
    data.setup("fit")
    return data


def test_batch_has_labels_and_the_steps_number(folder, words) -> None:
    data = build(folder, words)
    assert data.steps_per_epoch == 5
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == (4,)
    assert batch["labels"].dtype == torch.int64
    assert batch["num_step_labels"] == 4
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape


def test_second_sentence_is_of_type_one(folder, words) -> None:
    data = build(folder, words)
    rows = data.examples
    batch = rows._padded(sorted(range(4), key=lambda i: -rows.lengths[i]))
    longest, shortest = batch["input_ids"][0].tolist(), batch["input_ids"][-1].tolist()
    assert longest[:9] == [1, 4, 4, 4, 4, 2, 5, 6, 2]
    assert shortest[:7] == [1, 4, 2, 5, 6, 2, 0]
    assert batch["token_type_ids"][-1].tolist()[:7] == [0, 0, 0, 1, 1, 1, 0]
    assert batch["attention_mask"].sum(-1).tolist() == sorted(rows.lengths[:4].tolist(), reverse=True)
    assert batch["labels"].tolist() == [1, 0, 1, 0]


def test_scores_are_floats(folder, words) -> None:
    batch = next(iter(build(folder, words, "stsb").val_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert set(batch["labels"].tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_every_validation_example_comes_once(folder, words) -> None:
    data = build(folder, words, tokens_per_micro_batch=20)
    batches = list(data.val_dataloader())
    assert len(batches) > 1
    assert sum(len(batch["labels"]) for batch in batches) == 5
    widths = [int(batch["attention_mask"].sum(-1).max()) for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_seed_draws_examples_and_long_rows_are_cut(folder, words) -> None:
    one, other = (build(folder, words, max_examples=8, seed=seed) for seed in (0, 1))
    assert len(one.examples) == 8
    assert not np.array_equal(one.examples.lengths, other.examples.lengths)
    data = build(folder, words, max_length=6)
    assert data.examples.lengths.max() == 6
    assert data.num_cut > 0


def test_predict_gives_validation_rows_in_order(folder, words) -> None:
    data = build(folder, words)
    batch = next(iter(data.predict_dataloader()))
    assert batch["reference"][:2] == ["0", "1"]
    assert batch["prompt"][1] == "a a  [SEP] b c"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "mpc"}, "task is mpc; GLUE has cola, sst2"),
        ({"task": "rte"}, "has no rte_validation.jsonl"),
        ({"path": "rows.jsonl"}, "give the folder that holds mrpc_train.jsonl"),
    ],
)
def test_wrong_task_or_path_is_named(folder, words, options, message) -> None:
    with pytest.raises(UserError) as error:
        build(options.get("path", folder), words, options.get("task", "mrpc"))
    assert message in str(error.value)


def test_row_without_a_label_is_named(folder, words) -> None:
    path = folder / "mrpc_train.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[6] = json.dumps({"sentence1": "a", "sentence2": "b"}) + "\n"
    path.write_text("".join(lines))
    with pytest.raises(UserError) as error:
        build(folder, words)
    assert str(error.value).startswith(f"{path}, row 7: the field label is missing")


def test_an_empty_file_is_named(folder, words) -> None:
    (folder / "mrpc_validation.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no rows for mrpc"):
        build(folder, words)
