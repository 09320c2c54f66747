"""The logits of two models beside each other."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from bishare.commands.export.compare_logits import PROMPTS, Comparison, compare, logits_of


class Bytes:
    """A tokenizer whose tokens are bytes, cut to the tiny models' vocabulary."""

    def __call__(self, text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        return {"input_ids": torch.tensor([[byte % 64 for byte in text.encode()[:20]]])}


def test_largest_difference_and_top_tokens() -> None:
    mine = [torch.tensor([[1.0, -4.0], [2.0, 0.0]]), torch.tensor([[0.5, 0.0]])]
    theirs = [torch.tensor([[1.0, -4.0], [0.0, 1.0]]), torch.tensor([[0.5, 0.25]])]
    found = compare(mine, theirs)
    assert found == Comparison(difference=2.0, largest=4.0, num_equal=2, num_positions=3)
    assert found.relative == 0.5
    assert str(found) == (
        f"{len(PROMPTS)} prompts, 3 tokens: largest difference 2.0e+00 on logits up to 4.0 (5.0e-01), "
        "the same top-1 at 2 of 3"
    )


def test_other_number_of_prompts_is_a_bug() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare([torch.zeros(1, 2), torch.zeros(1, 2)], [torch.zeros(1, 2)])


def test_logits_are_fp32_without_dropout(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama").bfloat16().train()
    logits = logits_of(model, Bytes())  # type: ignore[arg-type]  # a stand-in
    assert len(logits) == len(PROMPTS) == 8
    assert not model.training
    assert {part.dtype for part in logits} == {torch.float32}
    assert logits[0].shape == (20, 64)
