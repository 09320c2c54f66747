"""An analysis agrees with the training's loss and with itself."""

from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from bishare.adapters.checkpoint import read_adapter
from bishare.commands.analyze.analysis import Options, analyze
from bishare.data.encoding import encode
from bishare.data.row_files import read_rows
from bishare.models.attach import load_adapter
from bishare.models.loading import load_base, load_tokenizer
from tests.commands.analyze.adapters import write_adapter


def test_loss_equals_that_of_validation(kronecker: str, rows: str, base: str) -> None:
    losses = analyze(Options(adapter=kronecker, data=rows)).losses
    assert losses is not None
    model = load_base(base, dtype="float32")
    load_adapter(model, kronecker)
    model.eval()
    total = count = 0.0
    for example in encode(load_tokenizer(base), read_rows(rows), prompt="alpaca", loss_on="answer", max_length=256):
        labels = torch.tensor([example.labels])
        num = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += num * model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.item()
        count += num
    assert losses.all == pytest.approx(total / count, rel=1e-4)


def test_scaled_adapter_differs_in_length_alone(kronecker: str, base: str, tmp_path: Path) -> None:
    config = read_adapter(kronecker).config
    itself = analyze(Options(adapter=kronecker, against=kronecker)).differences
    assert itself is not None
    assert itself.whole.effective == pytest.approx(0.0, abs=1e-6)
    double = write_adapter(base, tmp_path / "double", config, scale=2.0)
    twice = analyze(Options(adapter=kronecker, against=double)).differences
    assert twice is not None
    for difference in twice.slots.values():
        assert difference.cosine == pytest.approx(1.0)
        assert difference.relative == pytest.approx(2 / 3, rel=1e-6)
        assert abs(difference.random_cosine) < 0.3


def test_progress_ends_at_its_total(kronecker: str, rows: str) -> None:
    progress = Progress(disable=True)
    analyze(Options(adapter=kronecker, data=rows), progress)
    (task,) = progress.tasks
    assert task.completed == task.total
