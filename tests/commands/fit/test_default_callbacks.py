"""What a command adds to the callbacks of a configuration, and what keeps a default out."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, LearningRateMonitor, ThroughputMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bishare import callbacks
from bishare.cli import main
from bishare.commands.fit.command import BiShareCLI
from bishare.commands.fit.default_callbacks import with_defaults

OF_FIT = ["RunSummary", "ParameterCount", "AdapterCheckpoint", "Throughput", "LearningRate", "GradientNorm"]
SETTINGS = {"logger": None, "enable_checkpointing": None, "fast_dev_run": False}


class Mine(Callback):
    """A user's own."""


class MyCount(callbacks.ParameterCount):
    """A user's version of ours."""


class MyWriter(BasePredictionWriter):
    """A user's way to keep predictions."""

    def __init__(self) -> None:
        super().__init__("batch")


def names(found: Sequence[Callback]) -> list[str]:
    return [type(callback).__name__ for callback in found]


def test_run_without_callbacks_leaves_adapter_and_curves(
    bare_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(bare_config)]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for tag in ("train/loss", "train/grad_norm", "learning_rate/local.A", "learning_rate/local.B", "params/live"):
        assert tag in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("train/grad_norm")] == [0, 1]
    printed = capsys.readouterr().out
    for words in ("strategy", "Trainable parameters", "optimizer steps", "tensorboard --logdir"):
        assert words in printed


def test_own_callbacks_turn_no_default_off() -> None:
    found = with_defaults("fit", [Mine()], SETTINGS)
    assert names(found) == ["RunSummary", "Mine", *OF_FIT[1:]]


@pytest.mark.parametrize(
    ("own", "replaced"),
    [
        (MyCount(), "ParameterCount"),
        (ThroughputMonitor(batch_size_fn=len), "Throughput"),
        (LearningRateMonitor(), "LearningRate"),
        (callbacks.RunSummary(), "RunSummary"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_callback_of_its_kind_replaces_a_default(own: Callback, replaced: str) -> None:
    found = with_defaults("fit", [own], SETTINGS)
    assert len(found) == len(OF_FIT)
    assert own in found
    assert names([callback for callback in found if callback is not own]) == [n for n in OF_FIT if n != replaced]


def test_named_throughput_keeps_its_options(bare_config: Path) -> None:
    options = ["--trainer.callbacks+", "callbacks.Throughput", "--trainer.callbacks.window", "3"]
    cli = BiShareCLI("fit", ["--config", str(bare_config), *options], run=False)
    (throughput,) = (c for c in cli.trainer.callbacks if isinstance(c, callbacks.Throughput))
    assert throughput.window == 3
    assert set(OF_FIT) <= set(names(cli.trainer.callbacks))


def test_switch_turns_all_defaults_off(bare_config: Path) -> None:
    cli = BiShareCLI("fit", ["--config", str(bare_config), "--default_callbacks", "false"], run=False)
    assert not set(OF_FIT) & set(names(cli.trainer.callbacks))
    assert cli.trainer.checkpoint_callback is not None


@pytest.mark.parametrize(
    ("setting", "value", "left_out"),
    [
        ("logger", False, {"LearningRate", "GradientNorm"}),
        ("enable_checkpointing", False, {"AdapterCheckpoint"}),
        ("fast_dev_run", 1, {"AdapterCheckpoint"}),
    ],
)
def test_setting_leaves_useless_defaults_out(setting: str, value: object, left_out: set[str]) -> None:
    found = with_defaults("fit", [], {**SETTINGS, setting: value})
    assert names(found) == [name for name in OF_FIT if name not in left_out]


def test_run_without_logger_writes_its_adapter(bare_config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(bare_config), "--trainer.logger", "false"]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_fast_dev_run_writes_no_adapter(bare_config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(bare_config), "--trainer.fast_dev_run", "true"]) == 0
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_measuring_adds_the_summary_alone(command: str) -> None:
    assert names(with_defaults(command, [], SETTINGS)) == ["RunSummary"]


def test_measuring_a_checkpoint_misses_no_callback(bare_config: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert main(["fit", "--config", str(bare_config)]) == 0
    assert main(["validate", "--config", str(bare_config), "--ckpt_path", "last"]) == 0
    assert not [warning for warning in recwarn if "callbacks" in str(warning.message)]


def test_own_prediction_writer_replaces_ours() -> None:
    own = MyWriter()
    assert names(with_defaults("predict", [], SETTINGS)) == ["RunSummary", "PredictionWriter"]
    assert names(with_defaults("predict", [own], SETTINGS)) == ["RunSummary", "MyWriter"]
    assert names(with_defaults("predict", [], {**SETTINGS, "fast_dev_run": True})) == ["RunSummary"]
