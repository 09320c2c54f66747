"""All that makes a step fast against the plain way: padded rows, whole logits, products of their own, torch's AdamW."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

import bishare.ops.linear_cross_entropy
from bishare.adapters.bishare import BiShareConfig
from bishare.data.packing import pack, unpack
from bishare.models.adapted_linear import AdaptedWeight
from bishare.models.attach import adapter_of, attach
from bishare.models.compiling import compile_norms
from bishare.models.packed_attention import can_pack, use_packed_attention
from bishare.ops.frozen_linear import unpatch_linears
from bishare.ops.rms_norm import unpatch_rms_norms
from bishare.ops.swiglu import unpatch_swiglu
from bishare.training.loss import token_loss
from bishare.training.optimization import adamw, parameter_groups
from tests.compiler import needs_compiler

STEPS, LEARNING_RATE = 8, 5e-3
LENGTHS = [(12, 7, 9), (5, 12), (20, 3, 3, 8), (16,), (9, 9, 9), (4, 30), (11, 2, 13), (6, 18)]

ModelFactory = Callable[..., PreTrainedModel]


def steps() -> list[dict[str, Tensor]]:
    """A pack for every optimizer step; the first third of each document is its prompt."""
    generator = torch.Generator().manual_seed(4)
    packs = []
    for lengths in LENGTHS:
        ids = [torch.randint(3, 64, (n,), generator=generator) for n in lengths]
        packs.append(pack(ids, [torch.where(torch.arange(len(row)) < len(row) // 3, -100, row) for row in ids]))
    return packs


def adapted(tiny_model: ModelFactory, transform: str) -> PreTrainedModel:
    model = tiny_model("llama")
    adapter = attach(model, BiShareConfig(transform=transform, size=None if transform == "slice" else 24))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.train()


def plain_forward(module: AdaptedWeight, x: Tensor) -> Tensor:
    A, B = module.adapter.factors(module.slot)
    return F.linear(x, module.matrix(), module.bias) + (x @ A.T) @ B.T


def plain_loss(model: PreTrainedModel, packed: dict[str, Tensor]) -> Tensor:
    batch = unpack(packed)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def train(
    model: PreTrainedModel, loss_of: Callable[..., Tensor], optimizer: torch.optim.Optimizer
) -> tuple[list[Tensor], Tensor]:
    """The loss of every step, and the first gradient."""
    losses, gradients = [], []
    for batch in steps():
        loss = loss_of(model, batch)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in adapter_of(model).parameters()]))
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == STEPS
    return losses, gradients[0]


@pytest.mark.parametrize("transform", ["kronecker", "gate", "slice"])
@pytest.mark.parametrize(
    "variant", ["packed", "checkpointed", *(pytest.param(v, marks=needs_compiler) for v in ("compiled", "all"))]
)
def test_fast_steps_equal_the_plain_way(
    transform: str, variant: str, tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_model, transform)
    with monkeypatch.context() as patch:
        patch.setattr(AdaptedWeight, "forward", plain_forward)
        unpatch_linears(model)
        unpatch_rms_norms(model)
        unpatch_swiglu(model)
        untrained = plain_loss(model, steps()[-1]).detach()
        plain = torch.optim.AdamW(adapter_of(model).parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        losses, gradient = train(model, plain_loss, plain)

    monkeypatch.setattr(
        bishare.ops.linear_cross_entropy, "CHUNK_BYTES", 64 * 5 * 4
    )  # the labels of a step in several chunks
    model = adapted(tiny_model, transform)
    use_packed_attention(model)
    assert can_pack(model)
    if variant in ("checkpointed", "all"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if variant in ("compiled", "all"):
        compile_norms(model.base_model)
    groups = parameter_groups(adapter_of(model), learning_rate=LEARNING_RATE, lr_factors={})
    fast = adamw(groups, weight_decay=0.01)
    fast_losses, fast_gradient = train(model, lambda m, batch: token_loss(m, batch).mean(), fast)

    assert abs(untrained - losses[-1]) > 1e-2 * losses[-1]  # a hundred times the tolerance: the steps matter
    torch.testing.assert_close(fast_losses[0], losses[0], rtol=1e-5, atol=0)
    assert (fast_gradient - gradient).norm() < 1e-5 * gradient.norm()
    torch.testing.assert_close(fast_losses, losses, rtol=1e-4, atol=0)
