"""The authors' formulation, which benchmarks run beside ours, computes the same numbers."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.published import passes, use_published_passes
from bishare.adapters.bishare import BiShareConfig
from bishare.models.attach import attach
from tests.adapters.test_bishare import FITS, SLOTS, build, expected_update

PUBLISHED = [
    fit for fit in FITS if fit.get("position", "center") == "center" and fit.get("kernel") in (None, "shared", "r_2")
]


@pytest.mark.parametrize("options", PUBLISHED, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_three_passes_follow_the_equations(options: dict[str, object]) -> None:
    adapter = build((2, 3, 2), **options)
    for slot in SLOTS:
        x = torch.randn(5, slot.in_features, dtype=torch.float64)
        updates = list(passes(adapter, slot, x))
        assert len(updates) == 3
        torch.testing.assert_close(sum(updates), x @ expected_update(adapter, slot, scale=2.0).T)


@pytest.mark.parametrize("transform", ["kronecker", "gate", "slice"])
def test_both_ways_give_equal_loss_and_gradients(
    transform: str, tiny_model: Callable[..., PreTrainedModel], token_ids: torch.Tensor
) -> None:
    model = tiny_model("llama").double()
    size = None if transform == "slice" else 24
    adapter = attach(model, BiShareConfig(transform=transform, size=size)).double()
    generator = torch.Generator().manual_seed(0)
    results = []
    for p in adapter.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=generator)
    for change in (lambda model: None, use_published_passes):
        change(model)
        loss = model(input_ids=token_ids, labels=token_ids).loss
        results.append((loss, torch.autograd.grad(loss, list(adapter.parameters()))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-9)
