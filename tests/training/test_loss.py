"""The loss sums."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from bishare.training.loss import token_loss


def test_sums_and_counts_equal_a_loop(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (2, 9), generator=generator)
    labels = torch.where(torch.rand(2, 9, generator=generator) < 0.4, -100, ids)
    loss = token_loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    logits = model(ids).logits
    total, num_labels, num_correct = 0.0, 0, 0
    for row in range(2):
        for position in range(8):
            label = int(labels[row, position + 1])
            if label == -100:
                continue
            probabilities = torch.softmax(logits[row, position], dim=-1)
            total -= float(probabilities[label].log())
            num_labels += 1
            num_correct += int(probabilities.argmax() == label)
    torch.testing.assert_close(loss.sum.item(), total, rtol=1e-5, atol=1e-5)
    assert (int(loss.num_labels), int(loss.num_correct)) == (num_labels, num_correct)
    assert 0 < num_labels < 16


def test_bf16_logits_are_compared_in_fp32(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    ids = torch.arange(3, 19).reshape(2, 8)
    loss = token_loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    assert loss.sum.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(
        model(ids).logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss.sum, expected)
