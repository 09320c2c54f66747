"""The loss of a batch of token sequences: cross-entropy summed over the labelled positions.

Sums, not means: an optimizer step divides by the number of labels of all its micro-batches and ranks, so that the
result does not depend on how the examples were dealt.

Shapes: b sequences, n tokens, v vocabulary, m labelled positions; labels are not shifted and -100 means no loss.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100


class TokenLoss(NamedTuple):
    """Sums over the labelled positions of one batch."""

    sum: Tensor  # [], fp32: cross-entropy in nats
    num_labels: Tensor  # [], int64
    num_correct: Tensor  # [], int64: positions where the label is the likeliest token

    def mean(self) -> Tensor:
        """Cross-entropy per label, in nats."""
        return self.sum / self.num_labels


def token_loss(model: nn.Module, batch: Mapping[str, Any]) -> TokenLoss:
    """Run a causal language model on ``input_ids`` and ``attention_mask`` [b, n] and compare with ``labels`` [b, n].

    The logits are taken to fp32 before the softmax, at the labelled positions only.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    labelled = labels != IGNORED
    predicted, wanted = logits[:, :-1][labelled].float(), labels[labelled]  # [m, v], [m]
    correct = (predicted.detach().argmax(-1) == wanted).sum()
    return TokenLoss(F.cross_entropy(predicted, wanted, reduction="sum"), labelled.sum(), correct)


def perplexity(loss: Tensor) -> Tensor:
    """exp of the mean cross-entropy in nats."""
    return torch.exp(loss)
