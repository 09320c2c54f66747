from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.checkpoint import read_whole_adapter, save_adapter
from bishare.adapters.merging import owners_of
from bishare.analysis.runs import read_answers, read_curves, read_evaluations
from bishare.errors import UserError
from bishare.models.attach import attach
from tests.randomised import randomise


def test_repeated_step_counts_with_its_last_value(tmp_path: Path) -> None:
    for values in ((1.0, 2.0), (3.0, 4.0)):  # a run, and its resume from step 1
        with SummaryWriter(str(tmp_path)) as writer:
            for step, value in enumerate(values, start=int(values[0] > 1)):
                writer.add_scalar("train/loss", value, step)
    assert read_curves(tmp_path) == {"train/loss": [(0, 1.0), (1, 3.0), (2, 4.0)]}


def test_answers_come_by_question_and_step(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("answers/0", "**What is it?**\n\nOne.\n\nTwo.", 0)
        writer.add_text("answers/0", "**What is it?**\n\nThree.", 8)
        writer.add_text("merge", "not an answer", 8)
    assert read_answers(tmp_path) == {"What is it?": {0: "One.\n\nTwo.", 8: "Three."}}


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        read_curves(tmp_path)


def test_undone_parts_of_a_run_are_empty(tmp_path: Path) -> None:

    assert read_evaluations(tmp_path) == []


def test_adapter_is_whole_without_its_base(tmp_path: Path, tiny_model) -> None:
    adapter = attach(tiny_model("llama"), ASLoRAConfig(r=2))
    randomise(adapter)
    group = next(iter(adapter.mergeable_groups().values()))
    group.tie(0, 2)
    save_adapter(adapter, tmp_path)
    state = torch.get_rng_state()
    read = read_whole_adapter(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert owners_of(read)[group.name] == {0: 2, 1: 1, 2: 2}
    for slot in adapter.slots:
        for ours, theirs in zip(adapter.factors(slot), read.factors(slot), strict=True):
            assert torch.equal(ours, theirs)
