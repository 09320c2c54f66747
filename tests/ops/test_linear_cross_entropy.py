"""The chunked answer-only head and packs against whole logits of padded rows."""

import weakref

import pytest
import torch
from torch import Tensor, nn

import bishare.ops.linear_cross_entropy
from bishare.data.packing import pack, unpack
from bishare.models.head import head_of
from bishare.models.packed_attention import can_pack, use_packed_attention
from bishare.ops.linear_cross_entropy import linear_cross_entropy
from bishare.training.loss import token_loss
from tests.packs import (
    DECODERS,
    ModelFactory,
    adapted,
    documents,
    documents_with_one_prompt,
    gradients,
    reference,
    rows,
)


@pytest.mark.parametrize("variant", ["padded", "packed", "sharing a prompt", "checkpointed"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_loss_and_gradients_equal_whole_logits(
    architecture: str, variant: str, tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bishare.ops.linear_cross_entropy, "CHUNK_BYTES", 64 * 5 * 4)  # 22 labels in five chunks
    model = adapted(tiny_model, architecture)
    given = documents_with_one_prompt() if variant == "sharing a prompt" else documents()
    packed = pack(*given)
    padded = rows(*given)
    expected = reference(model, padded)
    expected_gradients = gradients(model, expected)
    use_packed_attention(model)
    assert can_pack(model)
    if variant == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})

    loss = token_loss(model, padded if variant == "padded" else packed)

    assert head_of(model) is model.get_output_embeddings()
    assert int(loss.num_labels) == int((padded["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(loss.sum, expected, rtol=1e-5, atol=0)
    difference = gradients(model, loss.sum) - expected_gradients
    assert difference.norm() < 1e-5 * expected_gradients.norm()


def test_half_precision_packs_agree_with_padded_rows(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, "llama")
    exact = reference(model, unpack(pack(*documents())))
    model.to(torch.bfloat16)
    use_packed_attention(model)

    loss = token_loss(model, pack(*documents()))

    torch.testing.assert_close(loss.sum, exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("change", ["a hook", "a hook that keeps them", "a backward hook", "another module"])
def test_head_with_further_readers_keeps_its_logits(change: str) -> None:
    torch.manual_seed(0)
    head: nn.Module = nn.Linear(8, 40).requires_grad_(False)
    kept: list[Tensor] = []
    if change == "a hook":
        head.register_forward_hook(lambda module, args, y: y.tanh())
    elif change == "a hook that keeps them":
        head.register_forward_hook(lambda module, args, y: kept.append(y.detach()))
    elif change == "a backward hook":
        head.register_full_backward_hook(lambda module, g_in, g_out: None)
    else:
        head = nn.Sequential(head, nn.Tanh())
    hidden, wanted = torch.randn(6, 8, requires_grad=True), torch.randint(40, (6,))
    expected = nn.functional.cross_entropy(head(hidden), wanted, reduction="sum")
    expected_gradient = torch.autograd.grad(expected, hidden)[0]
    logits = head(hidden).detach()
    kept.clear()

    loss, correct = linear_cross_entropy(head, hidden, wanted)

    torch.testing.assert_close(loss, expected)
    assert int(correct) == int((logits.argmax(-1) == wanted).sum())
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], expected_gradient)
    assert all(torch.equal(one, logits) for one in kept)


def test_logits_of_one_chunk_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bishare.ops.linear_cross_entropy, "CHUNK_BYTES", 40 * 4 * 2)  # two rows
    head = nn.Linear(8, 40).requires_grad_(False)
    alive: list[weakref.ref[Tensor]] = []
    numbers: list[int] = []

    def note(module: nn.Module, args: object, y: Tensor) -> None:
        numbers.append(sum(one() is not None for one in alive))
        alive.append(weakref.ref(y))

    head.register_forward_hook(note)
    linear_cross_entropy(head, torch.randn(6, 8, requires_grad=True), torch.randint(40, (6,)))

    assert numbers == [0, 0, 0]


def test_a_trainable_head_keeps_its_gradient(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, "llama")
    model.get_output_embeddings().requires_grad_(True)
    token_loss(model, unpack(pack(*documents()))).sum.backward()
    assert model.lm_head.weight.grad.any()
