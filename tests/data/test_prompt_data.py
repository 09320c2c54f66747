import json
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import LlamaConfig, LlamaForCausalLM

from bishare.data.encoding import NO_LABEL
from bishare.data.packing import unpack
from bishare.data.prompt_data import PromptData
from bishare.data.prompts import render_prompt
from bishare.data.rows import Row
from bishare.errors import UserError


@dataclass(kw_only=True, eq=False)
class Given(PromptData):
    """Rows from a list."""

    rows: list[Row] = field(kw_only=False)

    def read(self) -> list[Row]:
        return self.rows


@pytest.fixture
def make(tokenizer, rows):
    def make(given=rows, **options):
        return Given(given, tokenizer=tokenizer, **{"batch_size": 8, "tokens_per_micro_batch": 256, **options})

    return make


def texts(tokenizer, batches):
    """The examples of some batches, as text."""
    return Counter(
        tokenizer.decode(ids[mask.bool()])
        for batch in batches
        for ids, mask in zip(*(unpack(batch)[name] for name in ("input_ids", "attention_mask")), strict=True)
    )


def whole_texts(tokenizer, rows):
    return Counter(f"{render_prompt(tokenizer, row, 'alpaca')}{row.output}</s>" for row in rows)


def test_rows_are_split_once_and_each_stands_in_one_half(make, tokenizer, rows):
    data = make()
    data.setup("fit")
    train, validation = texts(tokenizer, data.train_dataloader()), texts(tokenizer, data.val_dataloader())
    assert sum(validation.values()) == 6
    assert train + validation == whole_texts(tokenizer, rows)


def test_the_split_depends_on_the_seed_and_not_on_the_number_of_training_examples(make, tokenizer):
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


def test_every_batch_of_a_step_carries_the_labels_of_the_step(make):
    data = make()
    data.setup("fit")
    assert data.accumulation > 1
    batches = list(data.train_dataloader())
    assert len(batches) == data.steps_per_epoch * data.accumulation
    for start in range(0, len(batches), data.accumulation):
        step = batches[start : start + data.accumulation]
        total = sum(int((batch["labels"][:, 1:] != NO_LABEL).sum()) for batch in step)
        assert {batch["num_step_labels"] for batch in step} == {total}


def test_a_model_that_cannot_keep_documents_apart_gets_padded_rows(make):
    data = make()
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    unchanged = LlamaForCausalLM(config)  # its attention was not exchanged
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(model=unchanged),
        world_size=1,
        global_rank=0,
        max_steps=1,
        accumulate_grad_batches=1,
    )
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert "lengths" not in batch
        assert batch["attention_mask"].sum(1).tolist() == sorted(batch["attention_mask"].sum(1).tolist())[::-1]


def test_validation_batches_have_no_step(make):
    data = make()
    data.setup("validate")
    assert all("num_step_labels" not in batch for batch in data.val_dataloader())


def test_no_held_out_rows_means_no_validation(make):
    data = make(num_validation=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match="num_validation is 0"):
        data.predict_dataloader()


def test_prompts_and_references_are_the_held_out_rows(make, tokenizer, rows):
    data = make(num_validation=9)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    pairs = [pair for batch in batches for pair in zip(batch["prompt"], batch["reference"], strict=True)]
    assert len(pairs) == 9
    assert set(pairs) <= {(data.render_prompt(row.instruction), row.output) for row in rows}
    ids, mask = batches[0]["input_ids"][0], batches[0]["attention_mask"][0]
    assert tokenizer.decode(ids[mask.bool()]) == batches[0]["prompt"][0]


def test_examples_without_room_for_an_answer_are_dropped_counted_and_left_out_of_prediction(make, rows, caplog):
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


def test_nothing_left_to_train_on_is_an_error(make):
    with pytest.raises(UserError, match=r"None of the 6 validation examples has a token of its answer .*max_length 10"):
        make(max_length=10).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_validation": 60}, "num_validation is 60, but there are 60 rows"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 1}, "max_length is 1"),
        ({"num_validation": -1}, "num_validation is -1"),
        ({"max_examples": 0}, "max_examples is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options).setup("fit")


def test_a_tokenizer_is_loaded_from_the_base_if_none_is_given(tmp_path, tokenizer, rows):
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    data = Given(rows, base=str(tmp_path))
    data.setup("fit")
    assert data.tokenizer.get_vocab() == tokenizer.get_vocab()


class Watcher(LightningModule):
    """Writes down which texts this rank met, in training and validation."""

    def __init__(self, tokenizer, folder):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.decode, self.folder = tokenizer.decode, folder
        self.seen = {"train": [], "val": [], "steps": []}

    def note(self, where, batch):
        pairs = zip(*(unpack(batch)[name] for name in ("input_ids", "attention_mask")), strict=True)
        self.seen[where] += [self.decode(ids[mask.bool()]) for ids, mask in pairs]

    def training_step(self, batch, batch_idx):
        self.note("train", batch)
        self.seen["steps"].append([self.trainer.global_step, batch["num_step_labels"]])
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def on_fit_end(self):
        self.seen["num_steps"] = self.trainer.global_step
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.seen))


def run(folder, tokenizer, data, **options):
    folder.mkdir(exist_ok=True)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(Watcher(tokenizer, folder), datamodule=data)
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def test_two_processes_share_the_data_of_one(tmp_path, make, tokenizer, rows):
    (alone,) = run(tmp_path / "one", tokenizer, make(num_validation=5))
    ranks = run(tmp_path / "two", tokenizer, make(num_validation=5), devices=2, strategy="ddp_fork")
    assert len(ranks) == 2
    assert Counter(ranks[0]["val"] + ranks[1]["val"]) == Counter(alone["val"])
    assert Counter(ranks[0]["train"] + ranks[1]["train"]) == Counter(alone["train"])
    assert sum(Counter(alone["train"] + alone["val"]).values()) == len(rows)
    # the same optimizer steps, each with the same labels in all
    assert {tuple(step) for rank in ranks for step in rank["steps"]} == {tuple(step) for step in alone["steps"]}
    assert ranks[0]["num_steps"] == ranks[1]["num_steps"] == alone["num_steps"]


def test_the_trainer_gets_the_accumulation(tmp_path, make, tokenizer):
    data = make()
    (seen,) = run(tmp_path / "run", tokenizer, data)
    assert data.trainer.accumulate_grad_batches == data.accumulation > 1
    assert seen["num_steps"] == data.steps_per_epoch


def test_overfit_batches_is_refused(tmp_path, make, tokenizer):
    with pytest.raises(UserError, match=r"use data\.max_examples"):
        run(tmp_path / "run", tokenizer, make(), overfit_batches=2)


def test_an_accumulation_of_the_users_own_is_refused(tmp_path, make, tokenizer):
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches is 5"):
        run(tmp_path / "run", tokenizer, make(), accumulate_grad_batches=5)


def test_a_step_of_packs_holds_the_examples_of_a_step_of_padded_batches(make, tokenizer):
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
