"""Attention over packs: no document sees another, and models that cannot take packs stay as they are."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.lora import LoRAConfig
from bishare.data.packing import pack, unpack
from bishare.models.attach import attach, merge_and_remove, remove
from bishare.models.packed_attention import NAME, can_pack, model_inputs, use_packed_attention
from bishare.training.loss import token_loss
from tests.packs import DECODERS, LENGTHS, ModelFactory, adapted, documents, documents_with_one_prompt


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_document_leaves_the_second_unchanged(
    architecture: str, dtype: torch.dtype, tiny_model: ModelFactory
) -> None:
    model = adapted(tiny_model, architecture).to(dtype).eval()
    use_packed_attention(model)
    ids, labels = documents()
    other = [(ids[0] + 1) % 60 + 3, *ids[1:]]

    logits = [model(**model_inputs(pack(tokens, labels))).logits[0] for tokens in (ids, other)]

    assert torch.equal(logits[0][LENGTHS[0] :], logits[1][LENGTHS[0] :])
    assert not torch.equal(logits[0][1 : LENGTHS[0]], logits[1][1 : LENGTHS[0]])


def test_end_of_a_document_leaves_followers_unchanged(
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


def test_models_with_attention_windows_get_padded_rows(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, "mistral", window=8)
    use_packed_attention(model)
    assert not can_pack(model)
    packed = pack(*documents())
    torch.testing.assert_close(token_loss(model, packed).sum, token_loss(model, unpack(packed)).sum)


@pytest.mark.parametrize("leave", [remove, merge_and_remove])
def test_leaving_gives_the_base_its_attention(
    leave: Callable[[PreTrainedModel], None], tiny_model: Callable[..., PreTrainedModel]
) -> None:
    for before in ("sdpa", "eager", NAME):
        model = tiny_model("llama")
        model.set_attn_implementation(before)
        attach(model, LoRAConfig(r=2))
        assert model.config._attn_implementation == (NAME if before == "sdpa" else before)
        leave(model)
        assert model.config._attn_implementation == before


def test_encoders_keep_their_attention(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("bert")
    attach(model, LoRAConfig(r=2, targets=["q", "v"]))
    assert model.config._attn_implementation == "sdpa"
    use_packed_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_models_with_key_index_keep_attention(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    model.config.index_topk = 4
    attach(model, LoRAConfig(r=2))
    assert model.config._attn_implementation == "sdpa"


def test_attention_changed_after_attaching_stays(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    attach(model, LoRAConfig(r=2))
    model.set_attn_implementation("eager")
    remove(model)
    assert model.config._attn_implementation == "eager"
