"""Loss and metrics of classification."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from bishare.data.glue import TASKS
from bishare.training.classification import classification_loss, glue_metrics


def test_loss_is_a_sum_over_rows() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    loss = classification_loss(logits, labels)
    torch.testing.assert_close(loss.sum, 2 * F.cross_entropy(logits, labels))
    assert (loss.num_labels, loss.num_correct) == (2, 1)
    scores = classification_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0]))
    assert scores.sum == 5.0
    assert scores.mean() == 2.5


def test_metrics_are_those_of_glue() -> None:
    found = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1])
    labels = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1])
    tp, fp, fn, tn = 4, 1, 1, 2
    expected: dict[str, Any] = {
        "cola": {"matthews": (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5},
        "mrpc": {"f1": 2 * tp / (2 * tp + fp + fn), "accuracy": 6 / 8},
        "rte": {"accuracy": 6 / 8},
        "mnli": {"accuracy": 6 / 8},
    }
    for task, numbers in expected.items():
        metrics = glue_metrics(TASKS[task])  # type: ignore[index]  # the names are tasks
        metrics.update(found, labels)
        assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(numbers)
    scores, truth = torch.tensor([1.0, 2.5, 2.0, 4.0, 4.5]), torch.tensor([0.5, 2.0, 3.0, 3.5, 5.0])
    metrics = glue_metrics(TASKS["stsb"])
    metrics.update(scores, truth)
    correlations = {"pearson": stats.pearsonr(scores, truth)[0], "spearman": stats.spearmanr(scores, truth)[0]}
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(correlations)


@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("num_positive", [0, 3, 8])
def test_constant_predictions_correlate_with_nothing(predicted: int, num_positive: int) -> None:
    labels = torch.arange(8) < num_positive
    metrics = glue_metrics(TASKS["cola"])
    metrics.update(torch.full((8,), predicted), labels.long())
    assert metrics.compute()["matthews"] == 0.0


def test_matthews_is_the_correlation_of_two_classes() -> None:
    predicted, labels = torch.tensor([0, 1, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 0, 0, 1, 1, 1])
    metrics = glue_metrics(TASKS["cola"])
    metrics.update(predicted, labels)
    expected = stats.pearsonr(predicted.numpy(), labels.numpy()).statistic
    torch.testing.assert_close(metrics.compute()["matthews"].item(), expected)
