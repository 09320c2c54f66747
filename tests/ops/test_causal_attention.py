"""Causal attention whose backward pass is made of products: values, gradients, and how exact they are."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

import bishare.ops.causal_attention
from bishare.adapters.bishare import BiShareConfig
from bishare.models.attach import attach
from bishare.models.packed_attention import NAME
from bishare.ops.causal_attention import blocks_of, causal_attention
from tests.reference.attention_reference import attention

PACKS = {
    "one document": ([23], [0]),
    "short ones": ([5, 7, 1, 6], [0, 0, 0, 0]),
    "one prompt": ([12, 3, 4, 9, 2], [0, 5, 6, 5, 14]),
    "two prompts": ([9, 4, 8, 3, 5], [0, 4, 0, 8, 9]),
    "long behind a prompt": ([10, 21, 2], [0, 6, 20]),
}


def inputs(n: int, *, dtype: torch.dtype, rows: int = 1, spread: float = 1.0, d: int = 8) -> tuple[Tensor, ...]:
    """q, k, v as a model hands them on, transposed views, and the gradient of the output."""
    generator = torch.Generator().manual_seed(3)

    def draw(heads: int) -> Tensor:
        return (spread * torch.randn(rows, n, heads, d, generator=generator)).to(dtype)

    q, k, v = (draw(heads).transpose(1, 2).requires_grad_() for heads in (6, 2, 2))
    return q, k, v, draw(6)


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm() / expected.norm()).detach())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bishare.ops.causal_attention, "MAX_QUERIES", 8)
    blocks_of.cache_clear()
    yield
    blocks_of.cache_clear()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("pack", PACKS)
def test_value_and_gradients_follow_the_definition(pack: str, rows: int) -> None:
    lengths, shared = PACKS[pack]
    q, k, v, g = inputs(sum(lengths), dtype=torch.float32, rows=rows)
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]
    expected = attention(*exact, lengths, shared, 0.3)

    found = causal_attention(q, k, v, lengths=lengths, shared=shared, scale=0.3)

    assert relative(found, expected) < 1e-6
    gradients = torch.autograd.grad(found, (q, k, v), g)
    for of_part, wanted in zip(gradients, torch.autograd.grad(expected, exact, g.double()), strict=True):
        assert relative(of_part, wanted) < 1e-6


@pytest.mark.usefixtures("small_blocks")
def test_blocks_hold_short_documents_or_parts() -> None:
    blocks = blocks_of((3, 4, 20, 2), (0, 2, 0, 5))

    assert [block.queries for block in blocks] == [
        slice(0, 7),
        slice(7, 15),
        slice(15, 23),
        slice(23, 27),
        slice(27, 29),
    ]
    assert [block.columns is None for block in blocks] == [False, True, True, True, True]
    assert blocks[3].keys == [slice(7, 27)]
    assert blocks[4].keys == [slice(7, 12), slice(27, 29)]


@pytest.mark.parametrize("d", [64, 80, 128])  # the scale is a power of two for 64 alone
@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("lengths", [[300], [60, 80, 90]])
def test_bfloat16_gradients_are_as_exact_as_torchs(lengths: list[int], spread: float, d: int) -> None:
    """Scores of a spread of 16 are where rounding them before the softmax costs several per cent."""
    q, k, v, g = inputs(sum(lengths), dtype=torch.bfloat16, spread=spread, d=d)
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]

    def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        documents = zip(*(part.split(lengths, 2) for part in (q, k, v)), strict=True)
        outputs = [F.scaled_dot_product_attention(*its, is_causal=True, enable_gqa=True) for its in documents]
        return torch.cat(outputs, 2).transpose(1, 2)

    wanted = torch.autograd.grad(by_torch(*exact), exact, g.double())
    theirs = by_torch(q, k, v)
    ours = causal_attention(q, k, v, lengths=lengths, shared=[0] * len(lengths), scale=None)

    assert torch.equal(ours, theirs)
    errors = [
        [relative(part, its) for part, its in zip(torch.autograd.grad(out, (q, k, v), g), wanted, strict=True)]
        for out in (ours, theirs)
    ]
    assert max(errors[0]) < 1.5 * max(errors[1])
    assert max(errors[0]) < 1e-2


def test_only_inputs_and_row_sums_are_kept() -> None:
    q, k, v, _ = inputs(40, dtype=torch.bfloat16)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        causal_attention(q, k, v, lengths=[25, 15], shared=[0, 0], scale=None)

    own = [t for t in kept if t.untyped_storage().data_ptr() not in {p.untyped_storage().data_ptr() for p in (q, k, v)}]
    assert [(t.numel(), t.dtype) for t in own] == [(6 * 40, torch.float32)]


# --- inside a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_attached_model_trains_as_without_it(
    padded: bool, tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model("llama").to(torch.bfloat16)
    ids = torch.randint(3, 60, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 15:] = 0
    calls: list[int] = []
    monkeypatch.setattr(
        "bishare.models.packed_attention.causal_attention", lambda *a, **k: calls.append(1) or causal_attention(*a, **k)
    )
    losses, gradients = [], []
    for implementation in (NAME, "sdpa"):
        model = copy.deepcopy(base)
        adapter = attach(model, BiShareConfig(size=24))
        assert model.config._attn_implementation == NAME
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in adapter.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        model.set_attn_implementation(implementation)
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.parameters()]))

    assert len(calls) == (0 if padded else 3)  # layers
    assert torch.equal(*losses)
    assert relative(gradients[0], gradients[1].double()) < (1e-12 if padded else 2e-2)
