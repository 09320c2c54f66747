"""Questions are asked before and after training, and training does not notice."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bishare.errors import UserError
from bishare.training.module import BiShareModule
from callbacks import SampleAnswers
from callbacks.samples import undisturbed


def test_answers_are_shown_before_and_after(
    tiny_module: Callable[..., BiShareModule],
    tiny_data: LightningDataModule,
    tiny_trainer: Callable[..., Trainer],
    events: Callable[[], EventAccumulator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_trainer(SampleAnswers(["What is [1]?", "Why?"])).fit(tiny_module(), tiny_data)
    printed = capsys.readouterr().out
    assert "Answers before training" in printed
    assert "Answers at step 6" in printed
    assert printed.count("answer to [Q: What is [1]? A:]") == 2  # brackets are text, not markup
    logged = events().Tensors("answers/1/text_summary")
    assert [event.step for event in logged] == [0, 6]
    assert b"answer to [Q: Why? A:]" in logged[0].tensor_proto.string_val[0]


def test_training_with_questions_equals_training_without(
    tiny_module: Callable[..., BiShareModule], tiny_data: LightningDataModule, tiny_trainer: Callable[..., Trainer]
) -> None:
    trained = []
    for callbacks in ([], [SampleAnswers(["What?"])]):
        module = tiny_module()
        module.adapter_config.dropout = 0.5  # so that the random state shows in the result
        torch.manual_seed(7)
        tiny_trainer(*callbacks).fit(module, tiny_data)
        trained.append(dict(module.adapter.live_parameters()))
    plain, asked = trained
    assert all(torch.equal(plain[name], asked[name]) for name in plain)


def test_every_submodule_keeps_its_own_mode() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    module[1].eval()
    with suppress(RuntimeError), undisturbed(module):
        assert not module.training
        assert not module[0].training
        raise RuntimeError("out of memory")
    assert module.training
    assert module[0].training
    assert not module[1].training


def test_no_questions_and_no_length_are_refused() -> None:
    with pytest.raises(UserError, match="no questions"):
        SampleAnswers([])
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        SampleAnswers(["What?"], max_new_tokens=0)


def test_data_without_prompts_is_refused_early(
    tiny_module: Callable[..., BiShareModule], tiny_data: LightningDataModule, tiny_trainer: Callable[..., Trainer]
) -> None:
    with pytest.raises(UserError, match="render_prompt"):
        tiny_trainer(SampleAnswers(["What?"])).fit(tiny_module(), tiny_data.val_dataloader())
