"""The fused product against the plain one: x Wᵀ + b + (x Aᵀ) Bᵀ from torch's own operations."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.models.adapted_linear import AdaptedWeight
from bishare.models.attach import adapter_of, attach

ModelFactory = Callable[..., PreTrainedModel]

CONFIGS = {
    "lora": LoRAConfig(r=4),
    "aslora": ASLoRAConfig(r=4),
    "slice": BiShareConfig(transform="slice"),
    "gate": BiShareConfig(transform="gate", size=24),
    "vera": VeRAConfig(r=6),
    # 32 divides by 16 and 56 does not: products that are cut and products that are not.
    **{k: BiShareConfig(size=16, kernel=k) for k in ("shared", "per_rank", "1_r", "r_2", "2_r")},
}


def plain_forward(module: AdaptedWeight, x: Tensor) -> Tensor:
    A, B = module.adapter.factors(module.slot)
    return F.linear(x, module.matrix(), module.bias) + (x @ A.T.to(x.dtype)) @ B.T.to(x.dtype)


def adapted(tiny_model: ModelFactory, architecture: str, config: AdapterConfig, dtype: torch.dtype) -> PreTrainedModel:
    model = tiny_model(architecture)
    if architecture in ("gpt2", "gpt_neox"):
        config = copy.deepcopy(config)
        config.targets = ["q", "up", "down"]
    adapter = attach(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.to(dtype).train()


def loss_and_gradients(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in adapter_of(model).named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_value_and_gradients_equal_the_plain_product(
    architecture: str,
    name: str,
    checkpointing: bool,
    tiny_model: ModelFactory,
    token_ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted(tiny_model, architecture, CONFIGS[name], torch.float64)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, gradients = loss_and_gradients(model, token_ids)
    gradients = {k: g.clone() for k, g in gradients.items()}
    monkeypatch.setattr(AdaptedWeight, "forward", plain_forward)

    expected, expected_gradients = loss_and_gradients(model, token_ids)

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # transformers takes the loss in fp32
    assert gradients.keys() == expected_gradients.keys()
    for k, g in expected_gradients.items():
        assert (gradients[k] - g).norm() <= 1e-10 * g.norm(), k


@pytest.mark.parametrize("name", ["lora", "slice", "shared"])
def test_fp32_gradients_agree_to_1e_5(
    name: str, tiny_model: ModelFactory, token_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_model, "llama", CONFIGS[name], torch.float32)
    _, gradients = loss_and_gradients(model, token_ids)
    fused = torch.cat([g.flatten().clone() for g in gradients.values()])
    monkeypatch.setattr(AdaptedWeight, "forward", plain_forward)
    _, gradients = loss_and_gradients(model, token_ids)
    plain = torch.cat([g.flatten() for g in gradients.values()])
    assert (fused - plain).norm() < 1e-5 * plain.norm()


def one_layer(tiny_model: ModelFactory, **options: object) -> PreTrainedModel:
    return adapted(tiny_model, "llama", LoRAConfig(r=4, layers=[0], **options), torch.float64)


def test_gradient_reaches_the_input_through_siblings(tiny_model: ModelFactory) -> None:
    attention = one_layer(tiny_model).model.layers[0].self_attn
    x = torch.randn(1, 3, 32, dtype=torch.float64, requires_grad=True)

    def siblings(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)

    assert torch.autograd.gradcheck(siblings, x)
    assert torch.autograd.gradcheck(lambda x: siblings(x)[1:], x)  # the first, which forms the product, is not used


def test_one_module_may_read_one_input_twice(tiny_model: ModelFactory) -> None:
    layer = one_layer(tiny_model).model.layers[0].self_attn
    x = torch.randn(3, 32, dtype=torch.float64)
    twice = layer.q_proj(x), layer.k_proj(x), layer.q_proj(x), layer.k_proj(x)
    assert torch.equal(twice[0], twice[2])
    assert torch.equal(twice[1], twice[3])


def test_a_model_copied_between_siblings_works(tiny_model: ModelFactory) -> None:
    model = one_layer(tiny_model)
    x = torch.randn(3, 32, dtype=torch.float64)
    model.model.layers[0].self_attn.q_proj(x)  # k and v are still to come
    duplicate = copy.deepcopy(model)
    for name in ("q_proj", "k_proj", "v_proj"):
        original, copied = (getattr(m.model.layers[0].self_attn, name)(x) for m in (model, duplicate))
        assert torch.equal(original, copied)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_own_type(base: torch.dtype, tiny_model: ModelFactory, token_ids: Tensor) -> None:
    model = adapted(tiny_model, "llama", CONFIGS["shared"], torch.float32)
    exact, gradients = loss_and_gradients(model, token_ids)
    exact_norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    for name, p in model.named_parameters():
        if not name.startswith("bishare."):
            p.data = p.data.to(base)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.model.layers[0].mlp.up_proj(torch.randn(2, 32)).dtype == torch.bfloat16
        loss, gradients = loss_and_gradients(model, token_ids)
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    assert abs(norm / exact_norm - 1) < 0.1


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        (LoRAConfig(r=4), 32 + 3 * 4),  # q, k and v each have an A
        (BiShareConfig(transform="slice", r_local=2, r_intra=3, r_inter=5), 32 + 3 * 2 + 3 + 5),  # the windows are one
        (VeRAConfig(r=4), 4),  # one A, and no x, because A is not trained
    ],
    ids=["lora", "slice", "vera"],
)
def test_siblings_keep_input_and_rows_once(config: AdapterConfig, columns: int, tiny_model: ModelFactory) -> None:
    attention = adapted(tiny_model, "llama", config, torch.float64).model.layers[0].self_attn
    tokens = 500
    x = torch.randn(tokens, 32, dtype=torch.float64, requires_grad=True)
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        outputs = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    activations = sum(t.untyped_storage().nbytes() for t in kept.values() if tokens in t.shape) // 8
    assert len(outputs) == 3
    assert activations == tokens * columns
