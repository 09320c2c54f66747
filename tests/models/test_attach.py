import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.factors import Factors, Slot
from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.attach import adapter_of, attach, merge, remove, unmerge
from bishare.ops.frozen_linear import FrozenLinear
from tests.randomised import randomise

ModelFactory = Callable[..., PreTrainedModel]


def logits(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(ours) == list(expected)
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


def tied_llama(tiny_model: ModelFactory) -> PreTrainedModel:
    """A Llama whose last layer's q is the first one's."""
    model = tiny_model("llama")
    model.model.layers[2].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight
    return model


def test_adapter_is_registered_on_the_model(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama")

    adapter = attach(model, LoRAConfig(r=2))

    assert adapter_of(model) is adapter is model.bishare


def test_second_attach_is_refused(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = tiny_model("llama")
    randomise(attach(model, LoRAConfig(r=2)))
    before = logits(model, token_ids)

    with pytest.raises(UserError, match="already"):
        attach(model, BiShareConfig(size=12))

    assert torch.equal(logits(model, token_ids), before)


def test_model_is_adapted_again_after_removal(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = tiny_model("gpt2")
    before = logits(model, token_ids)
    randomise(attach(model, LoRAConfig(r=2)))
    remove(model)

    adapter = attach(model, BiShareConfig(size=12, targets=["up"]))

    assert torch.equal(logits(model, token_ids), before)
    assert len(adapter.slots) == 3


def test_refused_attach_leaves_the_model_unchanged(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama")
    before = values(model)

    with pytest.raises(UserError):
        attach(model, LoRAConfig(targets=["q", "nope"]))

    assert_same(values(model), before)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert all(p.requires_grad for p in model.parameters())
    attach(model, LoRAConfig())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_removal_restores_the_type_of_modules(tiny_model: ModelFactory, kind: str) -> None:
    model = tiny_model(kind)
    before = {name: type(module) for name, module in model.named_modules()}
    attach(model, LoRAConfig())
    assert type(model.lm_head) is FrozenLinear
    remove(model)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_removal_thaws_only_formerly_trainable_weights(tiny_model: ModelFactory) -> None:
    model = tiny_model("bert")
    model.bert.embeddings.requires_grad_(False)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    attach(model, LoRAConfig(r=2))
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"bishare"}

    remove(model)

    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable


def test_adapter_is_built_on_its_models_device(tiny_model: ModelFactory) -> None:
    adapter = attach(tiny_model("llama").to("meta"), BiShareConfig(size=12))

    assert all(p.is_meta for p in adapter.parameters())


@pytest.mark.parametrize("action", [adapter_of, remove, merge, unmerge])
def test_model_without_an_adapter_is_named(action: Callable[[nn.Module], object], tiny_model: ModelFactory) -> None:
    with pytest.raises(UserError, match="no adapter"):
        action(tiny_model("llama"))


def test_tied_weight_warns_and_never_merges(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = tied_llama(tiny_model)
    with pytest.warns(UserWarning, match="tied") as caught:
        randomise(attach(model, LoRAConfig(r=2, layers=[0, 1])))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"):
        assert name in str(caught[0].message)
    before, outputs = values(model), logits(model, token_ids)

    with pytest.raises(UserError, match="tied"):
        merge(model)

    assert_same(values(model), before)
    assert torch.equal(logits(model, token_ids), outputs)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_ties_of_unadapted_weights_do_not_warn(architecture: str, tiny_model: ModelFactory) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(tiny_model(architecture), LoRAConfig(r=2))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bf16_merge_adds_in_fp32(architecture: str, tiny_model: ModelFactory) -> None:
    model = tiny_model(architecture).bfloat16()
    adapter = attach(model, BiShareConfig(size=12))
    randomise(adapter)
    before = values(model)

    merge(model)

    for slot in adapter.slots:
        A, B = (f.detach() for f in adapter.factors(slot))
        module = model.get_submodule(slot.name)
        merged, frozen = module.weight, before[f"{slot.name}.weight"]
        update = B @ A if isinstance(module, nn.Linear) else (B @ A).T
        exact = (frozen.double() + update.double()).bfloat16()
        assert merged.dtype == torch.bfloat16
        assert (merged != exact).float().mean() < 1e-3  # fp32 rounding may tip a near tie
        assert (frozen + update.bfloat16() != exact).float().mean() > 0.01  # two casts would show
    unmerge(model)
    assert_same(values(model), before)


def test_second_merge_and_unmerge_are_refused(tiny_model: ModelFactory) -> None:
    model = tiny_model("llama")
    randomise(attach(model, LoRAConfig(r=2)))
    with pytest.raises(UserError, match="not merged"):
        unmerge(model)
    merge(model)
    merged = values(model)

    with pytest.raises(UserError, match="already"):
        merge(model)

    assert_same(values(model), merged)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merge_is_undone_from_a_fresh_base(architecture: str, tiny_model: ModelFactory) -> None:
    model = tiny_model(architecture)
    randomise(attach(model, LoRAConfig(r=2)))
    before = values(model)
    merge(model, keep_originals=False)
    merged = values(model)
    for undo in (unmerge, remove):
        with pytest.raises(UserError, match="originals"):
            undo(model)
        assert_same(values(model), merged)

    unmerge(model, fresh=tiny_model(architecture))

    assert_same(values(model), before)


def test_failed_merge_leaves_the_model_unchanged(tiny_model, token_ids, monkeypatch) -> None:
    model = tiny_model("llama")
    adapter = attach(model, LoRAConfig(r=2))
    randomise(adapter)
    before = model(token_ids).logits
    whole, calls = adapter.factors, []

    def fail_at_the_third(slot: Slot) -> Factors:
        calls.append(slot)
        if len(calls) == 3:
            raise MemoryError
        return whole(slot)

    monkeypatch.setattr(adapter, "factors", fail_at_the_third)
    with pytest.raises(MemoryError):
        merge(model)
    monkeypatch.undo()
    assert torch.equal(model(token_ids).logits, before)
    assert not adapter.merged
    assert not adapter.originals


def test_weight_with_replaced_forward_is_refused(tiny_model) -> None:
    model = tiny_model("llama")
    module = model.get_submodule("model.layers.1.mlp.up_proj")
    module.forward = module.forward
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj has a forward of its own"):
        attach(model, LoRAConfig())
