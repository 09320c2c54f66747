"""Real runs that merge: the decisions of the paper's algorithm, accumulation, resume, and everything that is logged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.attach import load_adapter
from bishare.training.module import BiShareModule
from callbacks import AdapterCheckpoint, AdaptiveMerging
from tests.reference.aslora_reference import merges

Module = Callable[..., BiShareModule]
Trainers = Callable[..., Trainer]

# One epoch of the tiny data is 6 optimizer steps of 2 micro-batches.
KRONECKER = {"transform": "kronecker", "r_local": 1, "r_intra": 2, "r_inter": 3, "size": 16, "merging": True}


def aslora() -> ASLoRAConfig:
    return ASLoRAConfig(r=2)


class Recorder(Callback):
    """Keeps every group's Bs as they are after every optimizer step."""

    def __init__(self) -> None:
        self.history: dict[str, list[list[list[float]]]] = {}
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step not in (0, *self.steps):
            self.steps.append(trainer.global_step)
            for name, group in pl_module.adapter.mergeable_groups().items():
                self.history.setdefault(name, []).append([p.flatten().tolist() for p in group.members()])


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "merges.jsonl").read_text().splitlines()]


def test_run_merges_as_the_algorithm_says(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers, tmp_path: Path
) -> None:
    module, recorder = tiny_module(aslora()), Recorder()

    tiny_trainer(recorder, AdaptiveMerging(1, 2, num_merges=2), max_epochs=2, logger=False).fit(module, tiny_data)

    assert recorder.steps == list(range(1, 13))
    log = log_of(tmp_path)
    assert len(log) == 10
    for name, history in recorder.history.items():
        expected = merges(history, start=1, interval=2, num_merges=2)
        assert [(r["step"], r["layer"], r["uses"]) for r in log if r["group"] == name] == expected
        assert [step for step, _, _ in expected] == [3, 5]
        assert module.adapter.mergeable_groups()[name].owners == (2, 2, 2)
        mean = torch.tensor(history, dtype=torch.float64)[:, 2].mean(0)
        group = module.adapter.mergeable_groups()[name]
        torch.testing.assert_close(group.mean[2].double().flatten(), mean, rtol=1e-5, atol=1e-7)
        assert group.steps == 12


def test_each_merge_removes_one_b_per_group(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            dead = pl_module.adapter.dead_parameters()
            assert all(p.grad is not None and not p.grad.any() for p in dead)
            assert all(p.grad is not None for p in pl_module.adapter.parameters())
            seen.append((trainer.global_step, len(dead)))

    module = tiny_module(aslora())
    module.configure_model()
    before = module.adapter.num_parameters()

    tiny_trainer(Watch(), AdaptiveMerging(1, 2, num_merges=1)).fit(module, tiny_data)

    assert seen == [(0, 0), (1, 0), (2, 0), (3, 5), (4, 5), (5, 5)]
    sizes = [group.shape[0] * group.shape[1] for group in module.adapter.mergeable_groups().values()]
    left = [r["live_parameters"] for r in log_of(tmp_path)]
    assert left == [before - sum(sizes[: i + 1]) for i in range(5)]
    assert module.adapter.num_parameters() == left[-1]


CHOICES: list[dict[str, Any]] = [
    {"candidates": "adjacent"},
    {"score": "current"},
    {"metric": "relative"},
    {"metric": "cosine"},
    {"metric": "correlation"},
    {"metric": "effective"},
    {"metric": "effective", "score": "current"},
    {"order": "random", "seed": 3},
    {"order": "dissimilar"},
    {"order": "hierarchical"},
    {"schedule": "cubic"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_every_option_merges_to_the_end(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers, tmp_path: Path, choice: dict[str, Any]
) -> None:
    module = tiny_module(BiShareConfig(**KRONECKER))

    tiny_trainer(AdaptiveMerging(1, 2, num_merges=2, **choice), logger=False).fit(module, tiny_data)

    log = log_of(tmp_path)
    assert len(log) == 12
    assert all(record["distance"] > 0 for record in log)
    assert {group.owners for group in module.adapter.mergeable_groups().values()} == {(2, 2, 2)}
    assert {record["step"] for record in log} == ({2, 5} if choice.get("schedule") == "cubic" else {3, 5})


def test_merging_stops_at_its_goal(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers, tmp_path: Path
) -> None:
    module = tiny_module(aslora())
    tiny_trainer(AdaptiveMerging(0, 1, target_groups=2), logger=False).fit(module, tiny_data)
    assert [len(group.live) for group in module.adapter.mergeable_groups().values()] == [2] * 5

    module = tiny_module(aslora())
    tiny_trainer(AdaptiveMerging(0, 1, target_fraction=0.5, lora_rank=2), logger=False).fit(module, tiny_data)
    log = log_of(tmp_path)
    assert log[-1]["fraction_of_lora"] <= 0.5 < log[-2]["fraction_of_lora"]
    assert log[-1]["live_parameters"] == module.adapter.num_parameters()


def test_everything_is_logged(
    tiny_module: Module,
    tiny_data: LightningDataModule,
    tiny_trainer: Trainers,
    tmp_path: Path,
    events: Callable[[], EventAccumulator],
    scalars: Callable[[str], dict[int, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = tiny_module(BiShareConfig(**KRONECKER))

    trainer = tiny_trainer(AdaptiveMerging(1, 2, num_merges=2))
    trainer.fit(module, tiny_data)

    log = log_of(tmp_path)
    assert {r["group"] for r in log} == {"local.q", "local.k", "local.v", "local.up", "local.down", "intra"}
    for group in {r["group"] for r in log}:
        mine = [r for r in log if r["group"] == group]
        assert scalars(f"merge/groups/{group}") == {0: 3, 3: 2, 5: 1}
        assert scalars(f"merge/distance/{group}") == pytest.approx({r["step"]: r["distance"] for r in mine})
        assert scalars(f"merge/next_distance/{group}") == pytest.approx({3: mine[0]["next_distance"]})
        assert mine[0]["distance"] < mine[0]["next_distance"]
        assert mine[1]["next_distance"] is None
        assert scalars(f"merge/mean_distance/{group}")[5] == pytest.approx(mine[1]["distance"])
    assert scalars("merge/live")[5] == log[-1]["live_parameters"] == module.adapter.num_parameters()
    assert scalars("merge/fraction_of_lora")[5] == pytest.approx(log[-1]["fraction_of_lora"])
    texts = [e.tensor_proto.string_val[0].decode() for e in events().Tensors("merge/text_summary")]
    assert len(texts) == 12
    first = log[0]
    assert texts[0].startswith(f"step 3, local.q: layer {first['layer']} now uses the B of layer {first['uses']};")
    assert f"distance {first['distance']:.4g}, next best {first['next_distance']:.4g}" in texts[0]
    assert [image.step for image in events().Images("merge/map")] == [6]
    assert [image.step for image in events().Images("merge/tree")] == [6]
    assert trainer.progress_bar_metrics["merges"] == 12
    assert capsys.readouterr().out.count("Merge: step") == 12


@pytest.fixture
def even_data(tiny_data: LightningDataModule) -> LightningDataModule:
    """Every micro-batch is the same, so that it does not matter where in the data a resumed run goes on."""
    loader: Any = tiny_data.val_dataloader()
    tiny_data.train_dataloader = lambda: DataLoader([0, 1] * 12, batch_size=2, collate_fn=loader.collate_fn)  # type: ignore[method-assign]
    return tiny_data


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
@pytest.mark.parametrize("config", [aslora, lambda: BiShareConfig(**KRONECKER)], ids=["aslora", "kronecker"])
def test_resumed_run_ends_as_the_unbroken_one(
    tiny_module: Module,
    even_data: LightningDataModule,
    tiny_trainer: Trainers,
    tmp_path: Path,
    config: Callable[[], AdapterConfig],
    stop: int,
) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    whole = tiny_module(config())
    tiny_trainer(AdaptiveMerging(1, 2, num_merges=2), saver, enable_checkpointing=True, logger=False).fit(
        whole, even_data
    )
    log = log_of(tmp_path)  # it holds merges that the resumed run has yet to make
    resumed = tiny_module(config())

    tiny_trainer(AdaptiveMerging(1, 2, num_merges=2), logger=False).fit(
        resumed, even_data, ckpt_path=tmp_path / f"step={stop}.ckpt", weights_only=False
    )

    assert {record["step"] for record in log} == {3, 5}
    assert log_of(tmp_path) == log
    state = whole.adapter.state_dict()
    assert any(name.endswith("mean") for name in state)
    for name, value in resumed.adapter.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_new_run_starts_a_new_log(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers, tmp_path: Path
) -> None:
    callback = AdaptiveMerging(1, 2, num_merges=1)
    for _ in range(2):
        tiny_trainer(callback, logger=False).fit(tiny_module(aslora()), tiny_data)
        assert len(log_of(tmp_path)) == 5


def test_adapter_of_a_merged_run_loads(
    tiny_module: Module,
    tiny_data: LightningDataModule,
    tiny_trainer: Trainers,
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> None:
    module = tiny_module(BiShareConfig(**KRONECKER))
    tiny_trainer(AdaptiveMerging(1, 2, num_merges=2), AdapterCheckpoint(), logger=False).fit(module, tiny_data)

    loaded = load_adapter(tiny_model("llama"), tmp_path / "adapter")

    assert loaded.num_parameters() == module.adapter.num_parameters()
    for slot in loaded.slots:
        assert all(torch.equal(a, b) for a, b in zip(loaded.factors(slot), module.adapter.factors(slot), strict=True))


def test_run_that_ends_before_merges_warns(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers
) -> None:
    with pytest.warns(UserWarning, match=r"ends at optimizer step 6, before 5 of its 10 merges \(the last at step 8\)"):
        tiny_trainer(AdaptiveMerging(2, 3, num_merges=2)).fit(tiny_module(aslora()), tiny_data)


def test_ranks_that_disagree_stop_the_run(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(AdaptiveMerging(1, 1, num_merges=1))
    other = torch.tensor(1)
    monkeypatch.setattr(
        trainer.strategy,
        "all_gather",
        lambda mine, **_: torch.stack([mine, mine if trainer.global_step < 2 else other]),
    )
    with pytest.raises(RuntimeError, match="merged different layers by optimizer step 2"):
        trainer.fit(tiny_module(aslora()), tiny_data)


@pytest.mark.parametrize("config", [LoRAConfig(r=2), BiShareConfig(transform="slice")], ids=["lora", "bishare"])
def test_methods_without_shared_a_are_refused_early(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers, config: AdapterConfig
) -> None:
    module = tiny_module(config)

    with pytest.raises(UserError, match=f"{config.method} as configured has nothing to merge"):
        tiny_trainer(AdaptiveMerging(1, 2, num_merges=1)).fit(module, tiny_data)

    assert not hasattr(module, "model")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="num_merges is 0; it must be at least 1"):
        AdaptiveMerging(1, 2, num_merges=0)


def test_more_merges_than_layers_are_refused(
    tiny_module: Module, tiny_data: LightningDataModule, tiny_trainer: Trainers
) -> None:
    with pytest.raises(UserError, match=r"num_merges is 3, but local\.q has 3 layers"):
        tiny_trainer(AdaptiveMerging(1, 2, num_merges=3)).fit(tiny_module(aslora()), tiny_data)
