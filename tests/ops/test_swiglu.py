"""Gated products with a backward pass of their own are transformers' own bit by bit, keep less, and change back."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3Config, Phi3MLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from bishare import LoRAConfig, attach, remove
from bishare.ops.swiglu import patch_swiglu, unpatch_swiglu
from tests.compiler import needs_compiler

SIZES: dict[str, Any] = {"hidden_size": 6, "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2}


def mlp_of(kind: type[nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(LlamaConfig(vocab_size=32, **SIZES, **options)).requires_grad_(False)


def patched(mlp: nn.Module) -> nn.Module:
    fast = deepcopy(mlp)
    patch_swiglu(nn.Sequential(fast))
    return fast


def value_and_gradient(mlp: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    read = x.clone().requires_grad_()
    y = mlp(read)
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(y, read, torch.randn_like(y))
    return y, gradient


def kept(mlp: nn.Module, x: Tensor) -> int:
    """Values that the backward pass reads again, parameters apart."""
    parameters = {p.data_ptr() for p in mlp.parameters()}
    seen: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        if saved.data_ptr() not in parameters:
            seen[saved.data_ptr()] = saved.numel()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        mlp(x.clone().requires_grad_())
    return sum(seen.values())


@pytest.mark.parametrize("kind", [LlamaMLP, Qwen2MLP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (0, 6)])
def test_value_and_gradient_are_bitwise_the_models(
    kind: type[nn.Module], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    mlp = mlp_of(kind).to(dtype)
    x = 3 * torch.randn(shape, dtype=dtype)
    for found, wanted in zip(value_and_gradient(patched(mlp), x), value_and_gradient(mlp, x), strict=True):
        assert torch.equal(found, wanted)


def test_gradient_is_that_of_finite_differences() -> None:
    mlp = patched(mlp_of(LlamaMLP)).double()
    assert torch.autograd.gradcheck(mlp, torch.randn(3, 6, dtype=torch.float64, requires_grad=True))


def test_output_of_the_activation_is_not_kept() -> None:
    mlp, x = mlp_of(LlamaMLP), torch.randn(7, 6)
    assert kept(patched(mlp), x) == 2 * 7 * 10
    assert kept(mlp, x) == 3 * 7 * 10


def test_one_trained_branch_gets_its_gradient() -> None:
    mlp = mlp_of(LlamaMLP)
    for name in ("gate_proj", "up_proj"):
        found = []
        for one in (deepcopy(mlp), patched(mlp)):
            weight = one.get_submodule(name).weight.requires_grad_()
            one(torch.arange(12.0).view(2, 6)).sum().backward()
            found.append(weight.grad)
        assert found[0].any()
        assert torch.equal(*found)


def test_without_a_gradient_the_model_computes() -> None:
    mlp, x = mlp_of(LlamaMLP), torch.randn(4, 6)
    fast = patched(mlp)
    assert fast(x).grad_fn is None
    with torch.no_grad():
        assert torch.equal(fast(x.requires_grad_()), mlp(x))


def test_unlike_mlps_stay_unchanged() -> None:
    class Biased(LlamaMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1))

    class Configured(LlamaMLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.config.hidden_size

    class Residual(LlamaMLP):
        def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
            y = super().forward(x)
            return y if residual is None else y + residual

    fused = Phi3MLP(Phi3Config(hidden_size=6, intermediate_size=10))
    gelu = mlp_of(GemmaMLP, hidden_act="gelu_pytorch_tanh")
    for other in (mlp_of(Biased), mlp_of(Configured), mlp_of(Residual), gelu, fused):
        assert "forward" not in vars(patched(other))


def test_copy_computes_with_its_own_weights() -> None:
    mlp = patched(mlp_of(LlamaMLP))
    copied = deepcopy(mlp)
    copied.down_proj.weight.zero_()
    x = torch.randn(4, 6, requires_grad=True)
    assert not copied(x).any()
    assert mlp(x).any()


@needs_compiler
def test_the_compiler_takes_it() -> None:
    mlp, x = mlp_of(LlamaMLP), torch.randn(4, 6)
    fast = patched(mlp)
    fast.compile(dynamic=True)
    for found, wanted in zip(value_and_gradient(fast, x), value_and_gradient(mlp, x), strict=True):
        torch.testing.assert_close(found, wanted)


def test_attach_replaces_mlps_and_remove_restores_them() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **SIZES))
    mlps = [module for module in model.modules() if isinstance(module, LlamaMLP)]
    attach(model, LoRAConfig(r=2))
    assert mlps
    assert all("forward" in vars(mlp) for mlp in mlps)
    remove(model)
    assert not any("forward" in vars(mlp) for mlp in mlps)
    mlps[0].forward = print  # somebody else's
    unpatch_swiglu(model)
    assert mlps[0].forward is print
