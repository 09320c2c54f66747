"""Known messages of other packages are silent, and all others are heard."""

import logging
import sys
import warnings
from collections.abc import Iterator

import pytest
from transformers.utils import logging as transformers_logging

from bishare.commands.quiet import silence_known_noise

LIGHTNING = "lightning.pytorch.utilities.rank_zero"


@pytest.fixture
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (LIGHTNING, "DeepSpeed")]
    before = [list(logger.filters) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        silence_known_noise()
        yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters[:] = filters


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(
    ("message", "is_heard"),
    [
        ("TPU available: False, using: 0 TPU cores", False),
        ("💡 Tip: buy something", False),
        ("GPU available: True (cuda), used: True", True),
    ],
)
def test_log_messages_by_their_beginning(message: str, is_heard: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=LIGHTNING):
        logging.getLogger(LIGHTNING).info(message)
    assert bool(caplog.messages) == is_heard


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(
    ("message", "is_heard"),
    [
        ("Checkpoint directory runs/1 exists and is not empty.", False),
        ("The variance of predictions or target is close to zero.", False),
        ("It is recommended to use `self.log('val/loss', ..., sync_dist=True)`", False),
        ("It is recommended to use `self.log('train/loss', ..., sync_dist=True)`", True),
        ("the learning rate is 0", True),
    ],
)
def test_warnings_by_their_words(message: str, is_heard: bool) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.warn(message, stacklevel=1)
    assert bool(heard) == is_heard


@pytest.mark.parametrize("is_terminal", [True, False])
def test_loading_bars_need_a_terminal(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(transformers_logging, "disable_progress_bar", lambda: calls.append(1))
    with warnings.catch_warnings():
        silence_known_noise()
    assert len(calls) == (0 if is_terminal else 1)
