"""Compares two models as functions: the logits of both over eight prompts.

Shapes: logits [n, vocabulary] for a prompt of n tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

PROMPTS = (
    "The capital of France is Paris, and the capital of Japan is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "Question: A train travels 60 miles in 90 minutes. What is its speed in miles per hour?\nAnswer:",
    "### Instruction:\nName three primary colours.\n\n### Response:\n",
    "Water boils at 100 degrees Celsius because",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"',
    "Der schnelle braune Fuchs springt über den faulen Hund. In English:",
)


class Comparison(NamedTuple):
    """Difference between the logits of two models."""

    difference: float
    """The largest |difference| over all tokens of all prompts."""
    largest: float
    """The largest |logit| of the first model."""
    num_equal: int
    """Positions with the same likeliest token."""
    num_positions: int
    """Tokens of all prompts."""

    @property
    def relative(self) -> float:
        return self.difference / self.largest

    def __str__(self) -> str:
        return (
            f"{len(PROMPTS)} prompts, {self.num_positions} tokens: largest difference {self.difference:.1e} on logits "
            f"up to {self.largest:.1f} ({self.relative:.1e}), the same top-1 at {self.num_equal} of "
            f"{self.num_positions}"
        )


@torch.no_grad()
def logits_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """The model's logits over every prompt in fp32, prompt by prompt and so without padding."""
    model.eval()
    device = next(model.parameters()).device
    logits = []
    for prompt in PROMPTS:
        encoded: Any = tokenizer(prompt, return_tensors="pt")
        output = model(input_ids=encoded["input_ids"].to(device))
        logits.append(output.logits[0].float().cpu())
    return logits


def compare(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Comparison:
    """Compare the logits of two models over the same prompts."""
    pairs = list(zip(mine, theirs, strict=True))
    return Comparison(
        difference=max(float((a - b).abs().max()) for a, b in pairs),
        largest=max(float(a.abs().max()) for a in mine),
        num_equal=sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs),
        num_positions=sum(len(a) for a in mine),
    )
