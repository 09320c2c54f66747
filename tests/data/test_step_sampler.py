import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset, DistributedSampler

from bishare.data.balancing import balance_by_tokens
from bishare.data.examples import Pack
from bishare.data.step_sampler import EvaluationSampler, StepLoader, StepSampler, choose_accumulation
from bishare.errors import UserError

LENGTHS = [5 + (7 * n) % 61 for n in range(103)]
LABELS = [1 + n % 9 for n in range(103)]


def sampler(*, num_examples=103, batch_size=16, accumulation=2, deal=None, **options):
    return StepSampler(
        LABELS[:num_examples], deal or deal_lengths, batch_size=batch_size, accumulation=accumulation, **options
    )


def deal_lengths(indices, num_packs, _):
    packs = balance_by_tokens([LENGTHS[index] for index in indices], num_packs)
    return [[indices[place] for place in pack] for pack in packs]


def steps_of(ranks, epoch, accumulation):
    """The examples of each step, from every rank's packs."""
    packs = [list(rank.packs(epoch)) for rank in ranks]
    return [
        sorted(index for rank in packs for pack in rank[start : start + accumulation] for index in pack.indices)
        for start in range(0, len(packs[0]), accumulation)
    ]


class TestAccumulation:
    def test_accumulation_is_the_least_within_the_budget(self):
        def choose(budget, world_size=1):
            return choose_accumulation([100] * 500, batch_size=64, tokens_per_micro_batch=budget, world_size=world_size)

        assert choose(6400) == 1
        assert choose(6399) == 2
        assert choose(1000) == 7
        assert choose(1600, world_size=2) == 2
        assert choose(1, world_size=4) == 16  # never more packs than examples

    def test_counts_the_examples_that_there_are(self):
        assert choose_accumulation([100] * 10, batch_size=64, tokens_per_micro_batch=500, world_size=1) == 2

    def test_batch_that_devices_cannot_share_is_refused(self):
        with pytest.raises(UserError, match=r"batch_size is 10, which 4 devices .*nearest: 8 or 12\."):
            choose_accumulation([9] * 99, batch_size=10, tokens_per_micro_batch=100, world_size=4)
        with pytest.raises(UserError, match=r"nearest: 4\."):
            choose_accumulation([9] * 99, batch_size=3, tokens_per_micro_batch=100, world_size=4)

    def test_fewer_examples_than_devices_are_refused(self):
        with pytest.raises(UserError, match="3 training examples are fewer than the 4 devices"):
            choose_accumulation([9] * 3, batch_size=4, tokens_per_micro_batch=100, world_size=4)


class TestStepSampler:
    def test_every_example_comes_once_per_epoch(self):
        steps = steps_of([sampler()], 0, 2)
        assert [len(step) for step in steps] == [16] * 6 + [7]
        assert sorted(index for step in steps for index in step) == list(range(103))

    @pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 7), (2, 3), (4, 1)])
    def test_steps_ignore_devices_and_accumulation(self, world_size, accumulation):
        ranks = [sampler(accumulation=accumulation, world_size=world_size, rank=rank) for rank in range(world_size)]
        assert steps_of(ranks, 3, accumulation) == steps_of([sampler()], 3, 2)

    def test_order_is_a_function_of_seed_and_epoch(self):
        def order(seed, epoch):
            return list(sampler(seed=seed).packs(epoch))

        assert order(1, 1) == order(1, 1)
        assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4

    def test_parallel_devices_have_nearly_equal_work(self):
        ranks = [sampler(accumulation=2, world_size=2, rank=rank) for rank in range(2)]
        for pair in zip(ranks[0], ranks[1], strict=True):
            tokens = [sum(LENGTHS[index] for index in pack.indices) for pack in pair]
            assert abs(tokens[0] - tokens[1]) <= max(LENGTHS[index] for pack in pair for index in pack.indices)

    def test_examples_spread_over_all_packs_of_steps(self):
        asked = []

        def deal(indices, num_packs, num_devices):
            asked.append((len(indices), num_packs, num_devices))
            return deal_lengths(indices, num_packs, num_devices)

        list(sampler(num_examples=38, accumulation=3, world_size=2, deal=deal))
        assert asked == [(16, 6, 2), (16, 6, 2), (6, 6, 2)]

    def test_any_start_gives_the_rest_of_epochs(self):
        steps = sampler(accumulation=3)
        whole = list(steps.packs(2))
        for start in range(len(whole) + 1):
            assert list(steps.packs(2, start)) == whole[start:]

    def test_each_pack_knows_its_steps_labels(self):
        ranks = [sampler(accumulation=3, world_size=2, rank=rank) for rank in range(2)]
        for number, step in enumerate(steps_of(ranks, 0, 3)):
            total = sum(LABELS[index] for index in step)
            for rank in ranks:
                assert {pack.num_step_labels for pack in list(rank.packs(0))[3 * number : 3 * number + 3]} == {total}

    def test_short_last_step_is_left_out(self, caplog):
        assert sampler(num_examples=20, batch_size=16, accumulation=4).num_steps == 2
        assert not caplog.messages
        steps = sampler(num_examples=19, batch_size=16, accumulation=4)
        assert caplog.messages == ["Each epoch leaves out the 3 examples of its last step, which has 4 packs to fill."]
        assert steps.num_steps == 1
        assert len(steps) == len(list(steps.packs(0))) == 4

    def test_few_examples_make_one_short_step(self):
        steps = sampler(num_examples=5, accumulation=2)
        assert [len(step) for step in steps_of([steps], 0, 2)] == [5]
        with pytest.raises(UserError, match="5 training examples are fewer than the 6 packs"):
            sampler(num_examples=5, accumulation=6)

    def test_more_packs_than_examples_are_refused(self):
        with pytest.raises(UserError, match=r"batch_size is 4, but a step has 6 packs .*fills them: 6"):
            sampler(batch_size=4, accumulation=3, world_size=2)

    def test_lightning_keeps_the_distributed_sampler(self):
        assert isinstance(sampler(), DistributedSampler)
        assert isinstance(EvaluationSampler(LENGTHS, tokens_per_pack=100), DistributedSampler)


class TestEvaluationSampler:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("num_examples", [4, 5, 103])
    @pytest.mark.parametrize("tokens_per_pack", [1, 100, 10_000])
    def test_ranks_have_equally_many_packs(self, world_size, num_examples, tokens_per_pack):
        lengths = LENGTHS[:num_examples]
        ranks = [
            list(EvaluationSampler(lengths, tokens_per_pack=tokens_per_pack, world_size=world_size, rank=rank))
            for rank in range(world_size)
        ]
        assert len({len(packs) for packs in ranks}) == 1
        assert all(pack.indices for packs in ranks for pack in packs)
        assert sorted(index for packs in ranks for pack in packs for index in pack.indices) == list(range(num_examples))
        if tokens_per_pack == 100 and num_examples == 103:
            assert len(ranks[0]) * world_size >= sum(lengths) / 100


class Packs(Dataset):
    """Hands back what it was asked for."""

    def __getitem__(self, pack: Pack):
        return {"indices": torch.tensor(pack.indices), "num_step_labels": pack.num_step_labels}


def loader(num_workers=0, **options):
    return StepLoader(Packs(), sampler(num_examples=20, batch_size=8, **options), num_workers=num_workers)


def indices(batches):
    return [tuple(batch["indices"].tolist()) for batch in batches]


def epoch_of(steps: StepLoader, epoch: int):
    steps.sampler.set_epoch(epoch)
    return indices(steps)


class TestStepLoader:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_goes_on_exactly_where_it_stopped(self, num_workers):
        whole = epoch_of(loader(), 0) + epoch_of(loader(), 1)
        per_epoch = len(loader())
        stops = range(1, 2 * per_epoch) if num_workers == 0 else [2, per_epoch, per_epoch + 1]
        for stop in stops:
            first, seen = loader(num_workers), []
            for epoch in (0, 1):
                first.sampler.set_epoch(epoch)
                for batch in first:
                    seen += indices([batch])
                    if len(seen) == stop:
                        break
                if len(seen) == stop:
                    break
            state = first.state_dict()
            second = loader(num_workers)
            second.load_state_dict(state)
            assert second.state_dict() == state
            rest = epoch_of(second, epoch) + (epoch_of(second, 1) if epoch == 0 else [])
            assert seen + rest == whole, stop

    def test_iterating_before_set_epoch_does_no_harm(self):
        steps = loader()
        iterator = iter(steps)  # Lightning does this before it sets the epoch of a resumed run
        steps.sampler.set_epoch(4)
        assert indices(iterator) == epoch_of(loader(), 4)

    def test_position_holds_for_its_own_epoch(self):
        first = loader()
        next(iter(first))
        second = loader()
        second.load_state_dict(first.state_dict())
        assert epoch_of(second, 1) == epoch_of(loader(), 1)
        assert epoch_of(second, 0) == epoch_of(loader(), 0)

    def test_step_boundary_holds_under_another_accumulation(self):
        first = loader(accumulation=2)
        iterator = iter(first)
        next(iterator), next(iterator)
        second = loader(accumulation=1)
        second.load_state_dict(first.state_dict())
        assert [sorted(pack) for pack in indices(second)] == [
            sorted(pack) for pack in epoch_of(loader(accumulation=1), 0)[1:]
        ]

    def test_other_data_inside_an_epoch_is_refused(self):
        first = loader()
        next(iter(first))
        second = loader(seed=1)
        second.load_state_dict(first.state_dict())
        with pytest.raises(UserError, match="with seed 0, now seed is 1"):
            next(iter(second))

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_leaves_the_global_random_stream_alone(self, num_workers):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(loader(num_workers))
        assert torch.equal(torch.get_rng_state(), before)


class Counter(LightningModule):
    """Notes the batches of every step; its one weight makes a valid optimizer."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.current_epoch, batch_idx, tuple(batch["indices"].tolist())))
        return self.weight * batch["indices"].sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(folder, callbacks, *, validate, num_workers, checkpoint=None, epochs=3):
    model = Counter()
    trainer = Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=2,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    validation = loader() if validate else None
    trainer.fit(model, loader(num_workers), validation, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return model


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
class TestResumeUnderLightning:
    @pytest.mark.parametrize(("validate", "num_workers"), [(False, 0), (True, 0), (True, 2)])
    def test_resumed_run_sees_the_unbroken_runs_batches(self, tmp_path, validate, num_workers):
        keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        whole = fit(tmp_path, [keep], validate=validate, num_workers=num_workers)
        steps = 3 * len(loader()) // 2
        for step in range(1, steps) if num_workers == 0 else [2, 3, 4]:
            checkpoint = tmp_path / f"step={step}.ckpt"
            resumed = fit(tmp_path, [], validate=validate, num_workers=num_workers, checkpoint=checkpoint)
            assert resumed.seen == whole.seen[2 * step :], step
            assert torch.equal(resumed.weight, whole.weight)

    @pytest.mark.parametrize("validate", [False, True])
    def test_run_resumed_at_an_epochs_end_does_too(self, tmp_path, validate):
        keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
        whole = fit(tmp_path, [keep], validate=validate, num_workers=0)
        for epoch in (0, 1):
            checkpoint = tmp_path / f"epoch={epoch}.ckpt"
            resumed = fit(tmp_path, [], validate=validate, num_workers=0, checkpoint=checkpoint)
            assert resumed.seen == whole.seen[(epoch + 1) * len(loader()) :], epoch
