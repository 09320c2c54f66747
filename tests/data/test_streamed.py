import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bishare.data.encoding import NO_LABEL
from bishare.data.examples import Examples
from bishare.data.streamed import StreamedData
from bishare.errors import UserError

NUM_ROWS = 61


@pytest.fixture
def path(tmp_path):
    """Rows of clearly different lengths; every tenth has no answer."""
    rows = [
        {"prompt": f"Count to {n}.", "completion": " ".join(map(str, range(n % 23 + 1))) if n % 10 else ""}
        for n in range(NUM_ROWS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(path, tokenizer):
    def make(*, max_steps=12, world_size=1, rank=0, **options):
        fixed = {"batch_size": 8, "tokens_per_micro_batch": 128, "num_validation": 5, "shuffle_rows": 16}
        data = StreamedData(str(path), tokenizer=tokenizer, **{"packing": False, **fixed, **options})
        data.trainer = SimpleNamespace(
            max_steps=max_steps, world_size=world_size, global_rank=rank, accumulate_grad_batches=1, overfit_batches=0
        )
        data.setup("fit")
        return data

    return make


def texts(tokenizer, batch):
    return [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def steps_of(tokenizer, ranks, accumulation):
    """The texts of each optimizer step, from every rank's batches."""
    batches = [list(rank) for rank in ranks]
    return [
        sorted(
            text for rank in batches for batch in rank[start : start + accumulation] for text in texts(tokenizer, batch)
        )
        for start in range(0, len(batches[0]), accumulation)
    ]


def test_every_step_knows_its_size_and_labels(make):
    data = make()
    batches = list(data.train_dataloader())
    assert data.accumulation > 1
    assert len(batches) == len(data.train_dataloader()) == 12 * data.accumulation
    for start in range(0, len(batches), data.accumulation):
        step = batches[start : start + data.accumulation]
        assert sum(len(batch["input_ids"]) for batch in step) == 8
        total = sum(int((batch["labels"][:, 1:] != NO_LABEL).sum()) for batch in step)
        assert {batch["num_step_labels"] for batch in step} == {total}


def test_pass_has_every_trainable_row(make, tokenizer):
    rows = {n for n in range(6, NUM_ROWS) if n % 10}
    data = make(max_steps=3, batch_size=len(rows))
    for step in steps_of(tokenizer, [data.train_dataloader()], data.accumulation):
        assert {int(text.split(".")[0].removeprefix("Count to ")) for text in step} == rows
    held_out = [text for batch in data.val_dataloader() for text in texts(tokenizer, batch)]
    assert sorted(text.split(".")[0] for text in held_out) == [f"Count to {n}" for n in range(1, 6)]


def test_devices_share_the_steps_of_one(make, tokenizer):
    alone = make()
    ranks = [make(world_size=2, rank=rank) for rank in range(2)]
    shared = steps_of(tokenizer, [rank.train_dataloader() for rank in ranks], ranks[0].accumulation)
    assert shared == steps_of(tokenizer, [alone.train_dataloader()], alone.accumulation)


def test_packed_documents_are_split_for_parallel_devices(make, monkeypatch):
    asked = []

    def deal(self, indices, num_packs, num_devices):
        asked.append((num_packs, num_devices))
        return [list(indices[start::num_packs]) for start in range(num_packs)]

    monkeypatch.setattr(Examples, "make_packs", deal)
    data = make(world_size=2, packing=True, max_steps=1)
    assert all("lengths" in batch for batch in data.train_dataloader())
    assert asked == [(2 * data.accumulation, 2)]


def test_any_position_is_resumed_exactly(make, tokenizer):
    whole = [texts(tokenizer, batch) for batch in make().train_dataloader()]
    for place in range(len(whole) + 1):
        loader = make().train_dataloader()
        iterator = iter(loader)
        for _ in range(place):
            next(iterator)
        again = make().train_dataloader()
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert [texts(tokenizer, batch) for batch in again] == whole[place:]


def test_longer_run_continues_the_shorter(make, tokenizer):
    first, whole = make(max_steps=7).train_dataloader(), make().train_dataloader()
    seen = [texts(tokenizer, batch) for batch in first]
    again = make().train_dataloader()
    again.load_state_dict(first.state_dict())
    assert seen + [texts(tokenizer, batch) for batch in again] == [texts(tokenizer, batch) for batch in whole]


def test_other_number_of_devices_resumes_the_step(make, tokenizer):
    data = make()
    whole = steps_of(tokenizer, [data.train_dataloader()], data.accumulation)
    loader = data.train_dataloader()
    iterator = iter(loader)
    for _ in range(3 * data.accumulation + 1):
        next(iterator)
    ranks = [make(world_size=2, rank=rank) for rank in range(2)]
    assert ranks[0].accumulation != data.accumulation
    loaders = [rank.train_dataloader() for rank in ranks]
    for one in loaders:
        one.load_state_dict(loader.state_dict())
    assert steps_of(tokenizer, loaders, ranks[0].accumulation) == whole[3:]


def test_state_of_other_data_is_refused(make):
    state = make().train_dataloader().state_dict()
    with pytest.raises(UserError, match="stands in a stream with seed 0, now seed is 1"):
        make(seed=1).train_dataloader().load_state_dict(state)


def test_run_without_an_end_is_refused(make):
    with pytest.raises(UserError, match=r"trainer\.max_steps is not given"):
        make(max_steps=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_examples": 5}, r"max_examples is not for a stream; trainer\.max_steps"),
        ({"num_workers": 2}, "num_workers is not for a stream"),
        ({"shuffle_rows": 0}, "shuffle_rows is 0"),
        ({"num_validation": NUM_ROWS}, "holds no rows to train on"),
    ],
)
def test_impossible_options_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


class Sums(LightningModule):
    """Its weight depends on every token and on the order of the steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        self.log("train/loss", 0.0)
        return self.weight * batch["input_ids"].sum() / batch["num_step_labels"] * self.weight.detach().cos()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(folder, data, *, max_steps, resume=None, every=5):
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(dirpath=folder, every_n_train_steps=every, save_top_k=-1, filename="{step}")],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    module = Sums()
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    assert trainer.global_step == max_steps
    return module.weight.item()


@pytest.mark.parametrize("stopped_at", [5, 10])
def test_resumed_run_ends_as_the_unbroken_one(tmp_path, path, tokenizer, stopped_at):
    def data():
        options = {"batch_size": 8, "tokens_per_micro_batch": 128, "num_validation": 5, "shuffle_rows": 16}
        return StreamedData(str(path), tokenizer=tokenizer, **options)

    whole = fit(tmp_path / "whole", data(), max_steps=13)
    fit(tmp_path / "first", data(), max_steps=stopped_at)
    for checkpoint in (tmp_path / "whole", tmp_path / "first"):  # of the longer run, and of a run that had ended
        resumed = fit(tmp_path / "again", data(), max_steps=13, resume=checkpoint / f"step={stopped_at}.ckpt")
        assert resumed == whole
