"""Factors assembled when a forward pass begins change no value, and are forgotten when it ends."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare import ASLoRAConfig, BiShareConfig, LoRAConfig, VeRAConfig, attach, merge, remove, unmerge
from bishare.adapters.base import AdapterConfig
from bishare.models import adapted_linear, factor_assembly
from bishare.models.adapted_linear import AdaptedWeight
from bishare.models.attach import HOOKS, adapter_of
from tests.randomised import randomise

ModelFactory = Callable[..., PreTrainedModel]
STORED: dict[str, AdapterConfig] = {
    "lora": LoRAConfig(r=3),
    "aslora": ASLoRAConfig(r=3),
    "kronecker": BiShareConfig(size=8),
    "gate": BiShareConfig(transform="gate", size=8),
    "slice": BiShareConfig(transform="slice"),
    "merging": BiShareConfig(size=8, merging=True),
    "first layers": LoRAConfig(r=3, layers=[0, 1], targets=["v", "up", "o"]),
}


class Counter:
    """How often factors were assembled, in all layers together and for one weight alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.together = self.alone = 0

        def assemble_each(*args: Any, **options: Any) -> Any:
            self.together += 1
            return each(*args, **options)

        def assemble(*args: Any, **options: Any) -> Any:
            self.alone += 1
            return one(*args, **options)

        each, one = factor_assembly.assemble_each, adapted_linear.assemble
        monkeypatch.setattr(factor_assembly, "assemble_each", assemble_each)
        monkeypatch.setattr(adapted_linear, "assemble", assemble)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def adapted(tiny_model: ModelFactory, config: AdapterConfig, architecture: str = "llama") -> PreTrainedModel:
    model = tiny_model(architecture)
    randomise(attach(model, config))
    return model


def inputs_of(model: nn.Module) -> Iterator[adapted_linear.SharedInput]:
    return (module.shared for module in model.modules() if isinstance(module, AdaptedWeight))


def logits_and_gradients(model: PreTrainedModel, token_ids: Tensor) -> tuple[Tensor, ...]:
    logits = model(input_ids=token_ids).logits
    torch.manual_seed(0)
    return logits, *torch.autograd.grad(logits, list(adapter_of(model).parameters()), torch.randn_like(logits))


@pytest.mark.parametrize("method", STORED)
def test_logits_and_gradients_equal_separate_assembly(
    method: str, tiny_model: ModelFactory, token_ids: Tensor, calls: Counter
) -> None:
    model = adapted(tiny_model, STORED[method])
    found = logits_and_gradients(model, token_ids)
    assert calls.alone == 0
    assert 0 < calls.together <= 2 * len({s.kind for s in adapter_of(model).slots})
    for hook in getattr(model, HOOKS):
        hook.remove()
    wanted = logits_and_gradients(model, token_ids)
    assert calls.alone > 0
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_the_trunk_alone_assembles_once_too(
    architecture: str, tiny_model: ModelFactory, token_ids: Tensor, calls: Counter
) -> None:
    model = adapted(tiny_model, LoRAConfig(targets=["re:.*"]), architecture)
    model.base_model(input_ids=token_ids)
    assert calls.alone == 0
    assert calls.together > 0


def test_factors_are_forgotten_after_a_pass(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = adapted(tiny_model, LoRAConfig())
    model(input_ids=token_ids)
    assert all(shared.assembled is None for shared in inputs_of(model))
    with pytest.raises(IndexError):
        model(input_ids=token_ids + 10_000)
    assert all(shared.assembled is None for shared in inputs_of(model))


def test_every_pass_reads_current_parameters(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = adapted(tiny_model, LoRAConfig())
    before = model(input_ids=token_ids).logits
    with torch.no_grad():
        for parameter in adapter_of(model).parameters():
            parameter.mul_(0.5)
    assert not torch.equal(model(input_ids=token_ids).logits, before)


def test_lone_weight_assembles_its_factors(tiny_model: ModelFactory, calls: Counter) -> None:
    model = adapted(tiny_model, LoRAConfig())
    q = model.get_submodule("model.layers.1.self_attn.q_proj")
    assert isinstance(q, AdaptedWeight)
    x = torch.randn(3, q.slot.in_features)
    A, B = adapter_of(model).factors(q.slot)
    torch.testing.assert_close(q(x), x @ (q.matrix() + B @ A).T)
    assert calls.together == 0


def test_checkpointed_layers_assemble_again(tiny_model: ModelFactory, token_ids: Tensor, calls: Counter) -> None:
    model = adapted(tiny_model, BiShareConfig(size=8))
    wanted = logits_and_gradients(model, token_ids)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls.together = 0
    found = logits_and_gradients(model, token_ids)
    assert calls.together == 0
    assert calls.alone > 0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_regenerated_pair_is_assembled_where_used(tiny_model: ModelFactory, token_ids: Tensor, calls: Counter) -> None:
    adapted(tiny_model, VeRAConfig(r=16))(input_ids=token_ids)
    assert calls.together == 0
    assert calls.alone > 0


def test_a_merged_adapter_is_left_out(tiny_model: ModelFactory, token_ids: Tensor, calls: Counter) -> None:
    model = adapted(tiny_model, LoRAConfig())
    merge(model)
    model(input_ids=token_ids)
    assert calls.together == calls.alone == 0
    unmerge(model)
    model(input_ids=token_ids)
    assert calls.together > 0


def test_inside_autocast_factors_have_its_type(tiny_model: ModelFactory, token_ids: Tensor, calls: Counter) -> None:
    model = adapted(tiny_model, LoRAConfig())
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=token_ids)
    assert calls.alone == 0
    assert calls.together > 0


def test_copied_model_reads_its_own_adapter(tiny_model: ModelFactory, token_ids: Tensor, calls: Counter) -> None:
    model = adapted(tiny_model, LoRAConfig())
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in adapter_of(copied).parameters():
            parameter.mul_(0.5)
    before, after = model(input_ids=token_ids).logits, copied(input_ids=token_ids).logits
    assert calls.alone == 0
    assert not torch.equal(before, after)
    remove(copied)
    assert not copied.base_model._forward_pre_hooks
    assert not copied.base_model._forward_hooks
    assert torch.equal(model(input_ids=token_ids).logits, before)


def test_copied_adapter_leaves_the_model_alone(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, LoRAConfig())
    copied: dict[int, Any] = {}
    deepcopy(adapter_of(model), copied)
    assert id(next(adapter_of(model).parameters())) in copied
    assert not {id(weight) for weight in model.base_model.parameters()} & copied.keys()


def test_removing_the_adapter_removes_the_hooks(tiny_model: ModelFactory) -> None:
    model = adapted(tiny_model, LoRAConfig())
    remove(model)
    assert not model.base_model._forward_pre_hooks
    assert not model.base_model._forward_hooks
