"""Examples in memory become the batches of optimizer steps."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from bishare.data.encoding import NO_LABEL
from bishare.errors import UserError
from tests.data.given import Given, train_and_watch


def test_batches_carry_the_labels_of_their_step(make):
    data = make()
    data.setup("fit")
    assert data.accumulation > 1
    batches = list(data.train_dataloader())
    assert len(batches) == data.steps_per_epoch * data.accumulation
    for start in range(0, len(batches), data.accumulation):
        step = batches[start : start + data.accumulation]
        total = sum(int((batch["labels"][:, 1:] != NO_LABEL).sum()) for batch in step)
        assert {batch["num_step_labels"] for batch in step} == {total}


def test_model_without_packs_gets_padded_rows(make):
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


def test_tokenizer_comes_from_the_base(tmp_path, tokenizer, rows):
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    data = Given(rows, base=str(tmp_path))
    data.setup("fit")
    assert data.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_trainer_gets_the_accumulation(tmp_path, make, tokenizer):
    data = make()
    (seen,) = train_and_watch(tmp_path / "run", tokenizer, data)
    assert data.trainer.accumulate_grad_batches == data.accumulation > 1
    assert seen["num_steps"] == data.steps_per_epoch


def test_overfit_batches_is_refused(tmp_path, make, tokenizer):
    with pytest.raises(UserError, match=r"use data\.max_examples"):
        train_and_watch(tmp_path / "run", tokenizer, make(), overfit_batches=2)


def test_own_accumulation_is_refused(tmp_path, make, tokenizer):
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches is 5"):
        train_and_watch(tmp_path / "run", tokenizer, make(), accumulate_grad_batches=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"tokens_per_micro_batch": 0}, "tokens_per_micro_batch is 0"),
        ({"max_examples": 0}, "max_examples is 0"),
        ({"max_length": 1}, "max_length is 1; an example needs at least 2 tokens"),
        ({"num_workers": -1}, "num_workers is -1; it must not be negative"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_fewer_validation_examples_than_devices(make):
    data = make(num_validation=3)
    data.trainer = SimpleNamespace(world_size=4, global_rank=0)
    with pytest.raises(UserError, match="3 validation examples are fewer than the 4 devices"):
        data.setup("validate")
