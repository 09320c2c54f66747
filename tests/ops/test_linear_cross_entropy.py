"""The chunked answer-only head and packs against whole logits of padded rows."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, GraniteConfig, PreTrainedModel
from transformers.models.gemma2 import Gemma2ForCausalLM
from transformers.models.granite import GraniteForCausalLM

import bishare.ops.linear_cross_entropy
from bishare.adapters.bishare import BiShareConfig
from bishare.data.packing import pack, unpack
from bishare.models.attach import attach
from bishare.models.head import head_of
from bishare.models.packed_attention import can_pack, model_inputs, use_packed_attention
from bishare.ops.linear_cross_entropy import linear_cross_entropy
from bishare.training.loss import token_loss

DECODERS = ["llama", "mistral", "qwen2", "gpt2", "gpt_neox"]
TOKENS = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(2))
LENGTHS = (12, 7, 9)

ModelFactory = Callable[..., PreTrainedModel]


def documents() -> tuple[list[Tensor], list[Tensor]]:
    ids = [row[:length] for row, length in zip(TOKENS, LENGTHS, strict=True)]
    labels = [torch.where(torch.arange(len(row)) < 3, -100, row) for row in ids]
    labels[1] = ids[1].clone()  # loss on all tokens: the first has nothing to predict it from
    return ids, labels


def documents_with_one_prompt() -> tuple[list[Tensor], list[Tensor]]:
    """Of which the second shares nine tokens with the first, the third ten with the second, the fourth nothing."""
    ids = [torch.cat((TOKENS[0, :9], TOKENS[1, :3])), torch.cat((TOKENS[0, :9], TOKENS[2, :6]))]
    ids += [torch.cat((ids[1][:10], TOKENS[1, 4:8])), TOKENS[2]]
    return ids, [torch.where(torch.arange(len(row)) < 11, -100, row) for row in ids]


def adapted(tiny_model: ModelFactory, architecture: str, *, window: int | None = None) -> PreTrainedModel:
    model = tiny_model(architecture)
    if architecture == "mistral":
        model.config.sliding_window = window
    adapter = attach(model, BiShareConfig(targets=["q", "up", "down"], size=24))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.train()


def rows(ids: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
    """The documents padded on the right."""
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def gradients(model: PreTrainedModel, loss: Tensor) -> Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def reference(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of whole logits, summed, written as the model's own loss is."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


@pytest.mark.parametrize("variant", ["padded", "packed", "sharing a prompt", "checkpointed"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_loss_and_gradients_are_those_of_whole_logits_of_padded_rows(
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


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_first_document_leaves_the_second_bitwise_unchanged(
    architecture: str, dtype: torch.dtype, tiny_model: ModelFactory
) -> None:
    model = adapted(tiny_model, architecture).to(dtype).eval()
    use_packed_attention(model)
    ids, labels = documents()
    other = [(ids[0] + 1) % 60 + 3, *ids[1:]]

    logits = [model(**model_inputs(pack(tokens, labels))).logits[0] for tokens in (ids, other)]

    assert torch.equal(logits[0][LENGTHS[0] :], logits[1][LENGTHS[0] :])
    assert not torch.equal(logits[0][1 : LENGTHS[0]], logits[1][1 : LENGTHS[0]])


def test_another_end_of_the_first_document_leaves_those_that_share_its_beginning_bitwise_unchanged(
    tiny_model: ModelFactory,
) -> None:
    model = adapted(tiny_model, "llama").eval()
    use_packed_attention(model)
    ids, labels = documents_with_one_prompt()
    other = [torch.cat((ids[0][:9], (ids[0][9:] + 1) % 60 + 3)), *ids[1:]]
    packs = [pack(tokens, labels) for tokens in (ids, other)]

    logits = [model(**model_inputs(batch)).logits[0] for batch in packs]

    assert [batch["shared"].tolist() for batch in packs] == [[0, 9, 10, 0]] * 2
    assert torch.equal(logits[0][12:], logits[1][12:])
    assert not torch.equal(logits[0][9:12], logits[1][9:12])


def test_half_precision_packs_agree_with_padded_rows(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, "llama")
    exact = reference(model, unpack(pack(*documents())))
    model.to(torch.bfloat16)
    use_packed_attention(model)

    loss = token_loss(model, pack(*documents()))

    torch.testing.assert_close(loss.sum, exact, rtol=2e-2, atol=0)


def test_models_that_change_their_logits_keep_their_own_path() -> None:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=0.5)).requires_grad_(False)
    scaled = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)).requires_grad_(False)
    for model in (capped, scaled):
        assert head_of(model) is None
        batch = unpack(pack(*documents()))
        torch.testing.assert_close(token_loss(model, batch).sum, reference(model, batch), rtol=1e-5, atol=0)


@pytest.mark.parametrize("change", ["a hook", "a hook that keeps them", "a backward hook", "another module"])
def test_a_head_whose_logits_somebody_else_reads_keeps_them(change: str) -> None:
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


def test_logits_of_one_chunk_exist_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_models_with_attention_windows_get_padded_rows(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, "mistral", window=8)
    use_packed_attention(model)
    assert not can_pack(model)
    packed = pack(*documents())
    torch.testing.assert_close(token_loss(model, packed).sum, token_loss(model, unpack(packed)).sum)


def test_deciding_about_the_head_leaves_every_mode_as_it_was(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, "llama")
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    assert head_of(model) is not None
    assert [module.training for module in model.modules()] == before
