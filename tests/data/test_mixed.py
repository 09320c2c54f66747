import json
from collections import Counter
from pathlib import Path

import pytest

from bishare.data.mixed import MixedData, Source
from bishare.errors import UserError


@pytest.fixture
def paths(tmp_path):
    """A hundred instructions, thirty texts and forty chats."""

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return [
        write("alpaca.jsonl", [{"instruction": f"i{n}", "output": "yes"} for n in range(100)]),
        write("text.jsonl", [{"text": f"text {n}"} for n in range(30)]),
        write(
            "chat.jsonl",
            [
                {"messages": [{"role": "user", "content": f"c{n}"}, {"role": "assistant", "content": "no"}]}
                for n in range(40)
            ],
        ),
    ]


@pytest.fixture
def mix(paths, tokenizer):
    def mix(weights, **options):
        sources = [Source(path, weight=weight) for path, weight in zip(paths, weights, strict=True)]
        options = {"batch_size": 8, "num_validation": 10, "packing": False, **options}
        data = MixedData(sources, tokenizer=tokenizer, **options)
        data.setup("fit")
        return data

    return mix


def kinds(data, epoch=0):
    """How many examples of an epoch come from each source."""
    loader = data.train_dataloader()
    loader.steps.set_epoch(epoch)
    texts = [data.tokenizer.decode(ids[ids != 0]) for batch in loader for ids in batch["input_ids"]]
    return Counter("chat" if "<|im" in text else "alpaca" if "Instr" in text else "text" for text in texts)


def test_epoch_has_the_shares_of_the_weights(mix, caplog):
    data = mix([2, 1, 1])
    assert "Mixture: an epoch takes" in caplog.text
    counts = kinds(data)
    assert counts == kinds(data, epoch=1)
    assert abs(counts["alpaca"] - 2 * counts["text"]) <= 1
    assert abs(counts["chat"] - counts["text"]) <= 1
    assert data.steps_per_epoch == -(-counts.total() // 8)


def test_without_weights_every_row_comes_once(mix):
    assert kinds(mix([None] * 3)).total() == 160


def test_epoch_may_exceed_its_sources(mix):
    counts = kinds(mix([1, 1, 2], examples_per_epoch=200))
    assert counts == {"alpaca": 50, "text": 50, "chat": 100}


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([1, None, 1], {}, r"text\.jsonl has no weight, but others have"),
        ([1, 0, 1], {}, r"the weights are \[1, 0, 1\]; each must be positive"),
        ([None] * 3, {"examples_per_epoch": 50}, "examples_per_epoch is 50; it needs weights"),
        ([1, 1, 1], {"examples_per_epoch": 2}, "examples_per_epoch is 2; it needs weights, and at least one"),
        ([1, 1, 1e-9], {"examples_per_epoch": 50}, r"chat\.jsonl has weight 1e-09, too little for one of 50"),
    ],
)
def test_impossible_weights_are_refused(mix, weights, options, message):
    with pytest.raises(UserError, match=message):
        mix(weights, **options)


def test_no_sources_are_refused(tokenizer):
    with pytest.raises(UserError, match="sources is empty"):
        MixedData([], tokenizer=tokenizer)


def test_source_without_usable_rows_is_named(mix, paths):
    Path(paths[1]).write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(UserError, match=r"text\.jsonl has no rows left to train on"):
        mix([1, 1, 1])
