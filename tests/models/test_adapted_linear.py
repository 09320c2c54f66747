from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.models.attach import adapter_of, attach
from tests.randomised import randomise

ModelFactory = Callable[..., PreTrainedModel]


def record(model: PreTrainedModel) -> dict[str, SimpleNamespace]:
    """Input and output of every adapted weight, by its name, of the forward passes to come."""
    seen: dict[str, SimpleNamespace] = {}
    for slot in adapter_of(model).slots:
        model.get_submodule(slot.name).register_forward_hook(
            lambda _, inputs, y, name=slot.name: seen.update({name: SimpleNamespace(x=inputs[0], y=y)})
        )
    return seen


def masks(model: PreTrainedModel, seen: dict[str, SimpleNamespace]) -> dict[str, Tensor]:
    """What dropout multiplied each input with, solved from the update: x masked = (y - x Wᵀ) (Aᵀ Bᵀ)⁻¹."""
    found = {}
    for slot in adapter_of(model).slots:
        x, y = seen[slot.name].x.double(), seen[slot.name].y.double()
        A, B = (f.double() for f in adapter_of(model).factors(slot))
        update = y - x @ model.get_submodule(slot.name).weight.double().T
        found[slot.name] = (update @ torch.linalg.pinv((B @ A).T) / x).detach()
    return found


def dropped_model(tiny_model: ModelFactory, targets: list[str], p: float = 0.5) -> PreTrainedModel:
    """A Llama in training mode whose adapters are square and well conditioned, so that masks can be solved for."""
    model = tiny_model("llama")
    adapter = attach(model, LoRAConfig(r=32, targets=targets, dropout=p, scaling="fixed", scale=1.0))
    torch.manual_seed(0)
    for slot in adapter.slots:
        A, B = adapter.get_parameter(f"local.A.{slot.key}"), adapter.get_parameter(f"local.B.{slot.key}")
        nn.init.orthogonal_(A)
        nn.init.orthogonal_(B)
    return model.train()


def test_dropout_zeroes_features_and_scales_the_rest(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = dropped_model(tiny_model, ["q"], p=0.2)
    seen = record(model)

    model(input_ids=token_ids)

    mask = torch.stack(list(masks(model, seen).values()))
    kept = mask > 0.5
    torch.testing.assert_close(mask, kept.double() / 0.8, rtol=0, atol=1e-2)
    assert 0.75 < kept.double().mean() < 0.85


def test_weights_of_one_input_share_one_mask(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = dropped_model(tiny_model, ["q", "gate", "up"])
    seen = record(model)

    model(input_ids=token_ids)

    mask = {name: m > 1 for name, m in masks(model, seen).items()}
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        assert torch.equal(mask[f"{prefix}.mlp.gate_proj"], mask[f"{prefix}.mlp.up_proj"])
        assert not torch.equal(mask[f"{prefix}.mlp.up_proj"], mask[f"{prefix}.self_attn.q_proj"])
    assert not torch.equal(mask["model.layers.0.mlp.up_proj"], mask["model.layers.1.mlp.up_proj"])


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_every_pass_draws_one_mask_for_qkv(architecture: str, tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = tiny_model(architecture)
    adapter = attach(model, LoRAConfig(r=4, targets=["q", "k", "v"], dropout=0.5))
    # One and the same A, and a B that hands its four numbers on: equal updates mean equal masks.
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            p.copy_(torch.eye(*p.shape) if ".B." in name else torch.arange(1.0, p.numel() + 1).view_as(p).sin())
    seen = record(model)

    def updates() -> list[list[Tensor]]:
        """The four numbers of every weight, by layer."""
        model(input_ids=token_ids)
        by_layer: list[list[Tensor]] = [[], [], []]
        for slot in adapter.slots:
            module, pass_ = model.get_submodule(slot.name), seen[slot.name]
            frozen = nn.functional.linear(pass_.x, module.weight, module.bias)
            by_layer[slot.layer].append((pass_.y - frozen)[..., :4].detach())
        return by_layer

    model.train()
    first, second = updates(), updates()
    for layer in (*first, *second):
        assert len(layer) == 3
        torch.testing.assert_close(layer[1], layer[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer[2], layer[0], rtol=1e-4, atol=1e-4)
    assert (first[0][0] - second[0][0]).abs().max() > 0.1


def test_there_is_no_dropout_in_evaluation(tiny_model: ModelFactory, token_ids: Tensor) -> None:
    with_dropout, without = tiny_model("llama"), tiny_model("llama")
    for model, p in ((with_dropout, 0.5), (without, 0.0)):
        randomise(attach(model, LoRAConfig(r=4, dropout=p)))

    outputs = [model.eval()(input_ids=token_ids).logits for model in (with_dropout, without)]

    assert torch.equal(*outputs)
    assert not torch.equal(with_dropout.train()(input_ids=token_ids).logits, outputs[1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bf16_base_takes_an_fp32_adapter(architecture: str, tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = tiny_model(architecture).bfloat16()
    randomise(attach(model, BiShareConfig(size=12)))
    seen = record(model)

    output = model(input_ids=token_ids, labels=token_ids)
    output.loss.backward()

    assert output.logits.dtype == torch.bfloat16
    for slot in adapter_of(model).slots:
        x, y = seen[slot.name].x, seen[slot.name].y
        assert y.dtype == torch.bfloat16
        module = model.get_submodule(slot.name)
        weight = module.weight.float() if isinstance(module, nn.Linear) else module.weight.float().T
        A, B = adapter_of(model).factors(slot)
        bias = 0.0 if module.bias is None else module.bias.float()
        exact = x.float() @ (weight + B @ A).T + bias
        assert (y.float() - exact).norm() < 0.01 * exact.norm()
    for p in adapter_of(model).parameters():
        assert p.dtype == p.grad.dtype == torch.float32
        assert p.grad.any()
    assert all(p.dtype == torch.bfloat16 for p in model.parameters() if not p.requires_grad)


def gradients(model: PreTrainedModel, token_ids: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(11)
    model(input_ids=token_ids, labels=token_ids).loss.backward()
    return [p.grad.clone() for p in adapter_of(model).parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("targets", [["q", "k", "v", "up", "down"], ["k", "gate", "up"]], ids=["default", "some"])
def test_gradient_checkpointing_changes_no_gradient(
    dropout: float, targets: list[str], tiny_model: ModelFactory, token_ids: Tensor
) -> None:
    model = tiny_model("llama").train()
    randomise(attach(model, BiShareConfig(size=12, dropout=dropout, targets=targets)))
    expected = gradients(model, token_ids)
    other_seed = torch.randint(0, 10, token_ids.shape)
    assert not torch.equal(gradients(model, other_seed)[0], expected[0])

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda *_: calls.append(1))

    for _ in range(2):
        torch.testing.assert_close(gradients(model, token_ids), expected, rtol=1e-5, atol=1e-7)
    assert len(calls) == 4  # twice per pass: the forward was indeed computed again
