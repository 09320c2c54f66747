"""The LightningModule for classification: an adapter in a frozen encoder, and a head trained in full."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import (
    Accuracy,
    F1Score,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)
from torchmetrics.classification import BinaryMatthewsCorrCoef
from transformers import PreTrainedModel
from typing_extensions import override

from bishare.adapters.base import AdapterConfig
from bishare.data.glue import TASKS, Task, TaskName
from bishare.errors import UserError
from bishare.models.classifier import head_parameters, train_head
from bishare.models.dtypes import DtypeChoice
from bishare.models.loading import load_classifier
from bishare.training.loss import TokenLoss
from bishare.training.module import Batch, BiShareModule

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class ClassificationModule(BiShareModule):
    """Trains an adapter and a classification head on a frozen encoder.

    Args:
        base: As in ``BiShareModule``; the architecture's sequence classifier is built.
        adapter: The method and its options.
        task: A task of GLUE, to decide classes and metrics; the command line takes the task from the data.
        base_dtype: Type of the frozen weights, as in ``BiShareModule``; adapter and head are always fp32.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run Python code that comes with the base model.
        learning_rate: Peak of the schedule.
        lr_factors: Factors of the learning rate by parameter group or role, as in ``BiShareModule``, and for ``head``.
        weight_decay: AdamW's decoupled weight decay.
        warmup_steps: Optimizer steps of a rising rate, up to the peak; below 1, a share of the run's steps.
        gradient_checkpointing: Recompute activations in the backward pass.

    Logs:
        ``train/loss``: mean cross-entropy of the optimizer step in nats; for scores the mean squared error.
        ``val/loss``: the same over the validation set.
        ``val/accuracy``, ``val/f1``, ``val/matthews``, ``val/pearson``, ``val/spearman``: GLUE's metrics of the task;
            a correlation is 0 where all predictions are the same.
        ``val/score``: mean of the task's metrics.
    """

    classifies: ClassVar[bool] = True

    def __init__(
        self,
        base: str,
        adapter: AdapterConfig,
        task: TaskName,
        *,
        base_dtype: DtypeChoice = "bfloat16",
        revision: str | None = None,
        trust_remote_code: bool = False,
        learning_rate: float = 1e-4,
        lr_factors: dict[str, float] | None = None,
        weight_decay: float = 0.0,
        warmup_steps: int | float = 100,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            base,
            adapter,
            base_dtype=base_dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            learning_rate=learning_rate,
            lr_factors=lr_factors,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            gradient_checkpointing=gradient_checkpointing,
        )
        if task not in TASKS:
            raise UserError(f"task is {task}; GLUE has {', '.join(TASKS)}.")
        self.task = TASKS[task]
        self.metrics = glue_metrics(self.task)

    @override
    def load_model(self) -> PreTrainedModel:
        model = load_classifier(
            self.base,
            self.task.num_classes,
            dtype=self.weights_type,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
        model.config.pad_token_id = self.tokenizer.pad_token_id  # decoders read the last token before the padding
        return model

    @override
    def adapt(self, model: PreTrainedModel) -> None:
        super().adapt(model)
        train_head(model)

    @override
    def head(self) -> Mapping[str, nn.Parameter]:
        return head_parameters(self.model)

    @override
    def loss(self, batch: Batch) -> TokenLoss:
        return classification_loss(self._logits(batch), batch["labels"])

    def _logits(self, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        return self.model(**inputs).logits.float()  # type: ignore[no-any-return]  # every classifier has logits

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, labels = self._logits(batch), batch["labels"]
        loss = classification_loss(logits, labels)
        self.val_loss.update(loss.mean(), weight=loss.num_labels)
        self.metrics.update(predictions(logits), labels)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        values = {name: value.nan_to_num() for name, value in self.metrics.compute().items()}
        for name, value in values.items():
            self.log(f"val/{name}", value)
        self.log("val/score", torch.stack(list(values.values())).mean(), prog_bar=True)
        self.val_loss.reset()
        self.metrics.reset()

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Classes or scores of a batch: a ``{"prompt", "answer", "reference"}`` for each example."""
        found = predictions(self._logits(batch)).tolist()
        rows: list[dict[str, str]] = []
        for prompt, value, reference in zip(batch["prompt"], found, batch["reference"], strict=True):
            answer = f"{value:.2f}" if self.task.num_classes == 1 else str(value)
            rows.append({"prompt": prompt, "answer": answer, "reference": reference})
        return rows

    @override
    def generate(self, prompts: list[str], max_new_tokens: int = 64) -> list[str]:
        """Refuse, since a classifier writes no text.

        Raises:
            UserError: Always.
        """
        raise UserError("a classifier writes no answers; leave out what asks for them.")


def classification_loss(logits: Tensor, labels: Tensor) -> TokenLoss:
    """Cross-entropy of classes, or the squared error of scores, summed over the rows.

    Args:
        logits: [b, number of classes], or [b, 1] for scores; fp32.
        labels: Classes [b] (int64) or scores [b].
    """
    # Sums, so that an optimizer step can divide by the labels of all its micro-batches.
    num_labels = torch.tensor(len(labels), device=labels.device)
    if logits.shape[1] == 1:
        total = F.mse_loss(logits[:, 0], labels, reduction="sum")
        return TokenLoss(total, num_labels, torch.zeros_like(num_labels))
    return TokenLoss(F.cross_entropy(logits, labels, reduction="sum"), num_labels, (logits.argmax(-1) == labels).sum())


def predictions(logits: Tensor) -> Tensor:
    """The likeliest classes [b], or the scores [b]."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)


class MatthewsCorrelation(BinaryMatthewsCorrCoef):
    """Matthews' correlation of two classes, 0 where all predictions or all labels are the same, as in scikit-learn.

    torchmetrics 1.9 gives another value there: 0.026 for one class on the validation set of MRPC, 1 or -1 where the
    labels are all the same too.
    """

    @override
    def compute(self) -> Tensor:
        counts: Tensor = self.confmat  # [labels, predictions]
        constant = (counts.sum(0) == 0).any() | (counts.sum(1) == 0).any()
        return torch.where(constant, torch.zeros((), device=counts.device), super().compute())


def glue_metrics(task: Task) -> MetricCollection:
    """GLUE's metrics of a task, by name."""
    kind: Literal["binary", "multiclass"] = "binary" if task.num_classes == 2 else "multiclass"
    build: dict[str, Any] = {
        "accuracy": lambda: Accuracy(task=kind, num_classes=task.num_classes),
        "f1": lambda: F1Score(task=kind, num_classes=task.num_classes),
        "matthews": MatthewsCorrelation,
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    found: dict[str, Metric | MetricCollection] = {name: build[name]() for name in task.metrics}
    return MetricCollection(found, compute_groups=False)
