"""RMS norms with a backward pass of their own give the values and gradients of transformers' norms, and change back."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from bishare import LoRAConfig, attach, remove
from bishare.models.compiling import compile_norms
from bishare.ops.rms_norm import patch_rms_norms, unpatch_rms_norms
from tests.compiler import needs_compiler


def patched(norm: nn.Module) -> nn.Module:
    fast = deepcopy(norm)
    patch_rms_norms(nn.Sequential(fast))
    return fast


def value_and_gradient(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    read = x.clone().requires_grad_()
    y = norm(read)
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(y, read, torch.randn_like(y))
    return y, gradient


def drawn(kind: type[nn.Module], *, dtype: torch.dtype) -> nn.Module:
    norm = kind(24).requires_grad_(False)
    nn.init.normal_(norm.weight)
    return norm.to(dtype)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (2, 3, 4, 24), (0, 24)])
def test_value_is_bitwise_and_gradient_nearly_the_models(
    kind: type[nn.Module], dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]
) -> None:
    norm = drawn(kind, dtype=dtype)
    fast = patched(norm)
    x = 3 * torch.randn(shape, dtype=dtype)
    (y, gradient), (fast_y, fast_gradient) = value_and_gradient(norm, x), value_and_gradient(fast, x)
    assert fast_y.grad_fn is not None
    assert "_RMSNorm" in fast_y.grad_fn.name()
    assert torch.equal(fast_y, y)
    assert fast_gradient.dtype == dtype
    torch.testing.assert_close(fast_gradient, gradient, rtol=tolerance, atol=tolerance)


def test_gradient_is_that_of_finite_differences() -> None:
    norm = patched(drawn(LlamaRMSNorm, dtype=torch.float32))
    x, direction, g = torch.randn(3, 24), torch.randn(3, 24), torch.randn(3, 24)
    read = x.clone().requires_grad_()
    norm(read).backward(g)
    step = 1e-3
    difference = ((norm(x + step * direction) - norm(x - step * direction)) * g).sum() / (2 * step)
    torch.testing.assert_close((read.grad * direction).sum(), difference, rtol=1e-3, atol=1e-3)


def test_bf16_input_keeps_its_type() -> None:
    norm = drawn(LlamaRMSNorm, dtype=torch.float32)
    x = torch.randn(4, 24, dtype=torch.bfloat16)
    (y, gradient), (fast_y, fast_gradient) = value_and_gradient(norm, x), value_and_gradient(patched(norm), x)
    assert torch.equal(fast_y, y)
    assert fast_gradient.dtype == torch.bfloat16
    torch.testing.assert_close(fast_gradient, gradient, rtol=8e-3, atol=8e-3)  # theirs rounds once more


def test_backward_pass_keeps_half_of_the_memory() -> None:
    def kept(norm: nn.Module) -> int:
        seen: dict[int, int] = {}

        def pack(saved: Tensor) -> Tensor:
            seen[saved.data_ptr()] = saved.nbytes
            return saved

        x = torch.randn(64, 24, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            norm(x)
        return sum(seen.values()) - norm.weight.nbytes

    norm = drawn(LlamaRMSNorm, dtype=torch.bfloat16)
    assert kept(patched(norm)) == 64 * 24 * 2 < kept(norm) / 2


def test_thawed_and_gradientless_norms_stay_the_models() -> None:
    norm = patched(drawn(LlamaRMSNorm, dtype=torch.float32))
    x = torch.randn(4, 24, requires_grad=True)
    with torch.no_grad():
        assert norm(x).grad_fn is None
    norm.requires_grad_(True)
    norm(x).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("other", [GemmaRMSNorm(24), nn.RMSNorm(24), nn.LayerNorm(24)])
def test_unlike_norms_stay_unchanged(other: nn.Module) -> None:
    assert "forward" not in vars(patched(other))


@needs_compiler
@pytest.mark.parametrize("attached_first", [True, False])
def test_norm_is_compiled_in_one_piece(attached_first: bool) -> None:
    model = nn.Sequential(drawn(LlamaRMSNorm, dtype=torch.float32))
    for change in (patch_rms_norms, compile_norms) if attached_first else (compile_norms, patch_rms_norms):
        change(model)
    y = model(torch.randn(4, 24, requires_grad=True))
    assert y.grad_fn is not None
    assert "Compiled" in y.grad_fn.name()


def test_copy_computes_with_its_own_weight() -> None:
    norm = patched(drawn(LlamaRMSNorm, dtype=torch.float32))
    copied = deepcopy(norm)
    copied.weight.zero_()
    x = torch.randn(4, 24, requires_grad=True)
    assert not copied(x).any()
    assert norm(x).any()


def test_attach_replaces_norms_and_remove_restores_them() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    norms = [module for module in model.modules() if isinstance(module, LlamaRMSNorm)]
    attach(model, LoRAConfig(r=2))
    assert norms
    assert all("forward" in vars(norm) for norm in norms)
    remove(model)
    assert not any("forward" in vars(norm) for norm in norms)
    model.model.norm.forward = print  # somebody else's
    unpatch_rms_norms(model)
    assert model.model.norm.forward is print
