"""The loss of a batch of token sequences: cross-entropy summed over the labelled positions.

Sums, not means: an optimizer step divides by the number of labels in all micro-batches and ranks, so that the result
does not depend on the assignment of examples to micro-batches.

Shapes: b sequences, n tokens, v vocabulary, m labelled positions; labels are not shifted and -100 means no loss.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bishare.data.packing import unpack
from bishare.distributed.partitions import is_gathered_late
from bishare.models.head import head_of
from bishare.models.packed_attention import can_pack, model_inputs
from bishare.ops.linear_cross_entropy import linear_cross_entropy

IGNORED = -100


class TokenLoss(NamedTuple):
    """Sums over the labelled positions of a batch."""

    sum: Tensor  # [], fp32: cross-entropy in nats
    num_labels: Tensor  # [], int64
    num_correct: Tensor  # [], int64: positions where the label is the likeliest token

    def mean(self) -> Tensor:
        """Cross-entropy per label, in nats."""
        return self.sum / self.num_labels


def token_loss(model: nn.Module, batch: Mapping[str, Any]) -> TokenLoss:
    """Run a causal language model on a batch and compare with the batch's labels.

    Logits are formed at the labelled positions only, and cast to fp32 before the softmax.

    Args:
        model: A causal language model.
        batch: ``input_ids``, ``attention_mask`` and ``labels`` [b, n]; or a pack (see ``data/packing.py``): a single
            row with ``position_ids``, and ``lengths`` and ``shared`` of the documents.
    """
    if "lengths" in batch and not can_pack(model):
        batch = unpack(batch)
    inputs = model_inputs(batch)
    labels = batch["labels"][:, 1:]
    labelled = labels != IGNORED
    wanted = labels[labelled]  # [m]
    # Without a plain head, the model's own last steps form the logits of all positions.
    if (head := head_of(model)) is None:
        predicted = model(**inputs, use_cache=False).logits[:, :-1][labelled].float()  # [m, v]
        correct = (predicted.detach().argmax(-1) == wanted).sum()
        return TokenLoss(F.cross_entropy(predicted, wanted, reduction="sum"), labelled.sum(), correct)
    base = cast(PreTrainedModel, model).base_model
    hidden = base(**inputs, use_cache=False)[0][:, :-1][labelled]  # [m, d]
    total, correct = linear_cross_entropy(head, hidden, wanted, gathered_late=is_gathered_late(head))
    return TokenLoss(total, labelled.sum(), correct)


def perplexity(loss: Tensor) -> Tensor:
    """exp of the mean cross-entropy in nats."""
    return torch.exp(loss)
