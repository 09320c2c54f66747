"""The choice of every kernel, by processor, device, type and gradient.

| operation                   | kernel here           | where                                      | elsewhere   |
|-----------------------------|-----------------------|--------------------------------------------|-------------|
| a b                         | oneDNN's linear       | CPU, fp32; no AVX-512: short or thin       | torch.mm    |
| hᵀ g, a sum over tokens     | four sums at once     | CPU, fp32, no AVX-512, 512 tokens or more  | a b         |
| plain layer, training       | node around a b       | CPU, fp32; x has a gradient, W has none    | nn.Linear   |
| plain layer, no gradient    | a b                   | CPU, fp32, ``fast_without_gradient``       | nn.Linear   |
| W of an adapted layer       | a b                   | any input has a gradient                   | torch.mm    |
| attention                   | flash, then products  | CPU, bf16, a gradient, no dropout          | sdpa        |
| RMS norm                    | node, keeps x         | x has a gradient, w has none               | the model's |
| SwiGLU                      | node, keeps g and u   | g or u has a gradient; one type            | the model's |
| dropout, draw               | 16 bits by numpy      | CPU                                        | bernoulli   |
| dropout, mask               | product of integers   | values of 2 or 4 bytes                     | of floats   |

For products and plain layers, "CPU" means x86 with oneDNN's operators in torch: only these processors were measured
(torch 2.13). On AMD processors with AVX-512, MKL reaches two thirds of oneDNN's speed, and half where a matrix is thin,
as in all products of an adapter. Without AVX-512, MKL takes 0.85 of oneDNN's time for the long products of training,
but oneDNN is faster for short and for thin products (x Aᵀ of an adapter: 0.5 to 0.9 of MKL's time). A gradient's sum
over many tokens is then taken in four parts at once, in 0.65 to 0.95 of the time of a single product. In half precision
``torch.mm`` calls oneDNN itself. On a GPU every product is torch's.
"""

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

HAS_ONEDNN_LINEAR = (
    platform.machine() in ("x86_64", "AMD64")
    and torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether torch has the operator that ``torch.compile`` emits for a linear layer."""
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
HAS_FLASH = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")

MANY_ROWS = 512
"""From this number of rows of a on, a processor without AVX-512 takes ``torch.mm``, except for thin products."""
THIN = range(5, 25)
"""Columns of b that make a product thin; with fewer or more columns MKL is as fast."""

_thread = threading.local()


@contextmanager
def fast_without_gradient() -> Iterator[None]:
    """Let this thread take the faster product without a gradient too, though its bits differ from the base model's."""
    before = getattr(_thread, "fast", False)
    _thread.fast = True
    try:
        yield
    finally:
        _thread.fast = before


# --- products -------------------------------------------------------------------------------------------------------


def may_bypass_torch(a: Tensor) -> bool:
    """Whether products with ``a`` may go through oneDNN instead of ``torch.mm``."""
    return HAS_ONEDNN_LINEAR and a.device.type == "cpu" and a.dtype == torch.float32


def uses_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether the product a b goes through oneDNN.

    Args:
        a: [m, k]. A transposed a belongs to a gradient, a sum over all tokens.
        b: [k, n].
    """
    if not may_bypass_torch(a):
        return False
    if not HAS_AVX512 and not (a.is_contiguous() and (len(a) < MANY_ROWS or b.shape[1] in THIN)):
        return False
    # For columns of a wider matrix oneDNN would take a hundred times as long.
    has_gaps = not (b.is_contiguous() or b.T.is_contiguous())
    return not has_gaps and a.numel() > 0 and b.numel() > 0


def uses_parts(h: Tensor) -> bool:
    """Whether the sum hᵀ g over the tokens of h [tokens, r] is taken in parts."""
    return not HAS_AVX512 and len(h) >= MANY_ROWS and may_bypass_torch(h)


def linear_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Literal["torch", "product", "node"]:
    """The kernel of a frozen layer.

    Returns:
        ``torch`` for ``nn.Linear``; ``product`` for ``matmul.mm`` without a gradient; ``node`` for ``matmul.mm`` in an
        autograd node that has a gradient for x alone.
    """
    if weight.dtype != x.dtype or not may_bypass_torch(x) or torch.is_autocast_enabled("cpu"):
        return "torch"
    if not torch.is_grad_enabled():
        return "product" if getattr(_thread, "fast", False) else "torch"
    is_trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    return "node" if x.requires_grad and not is_trained else "torch"


# --- attention, norms, gated products -------------------------------------------------------------------------------


def trains_attention_on(device: torch.device) -> bool:
    """Whether a model on ``device`` gains by this project's attention."""
    return device.type == "cpu"


def uses_causal_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0) -> bool:
    """Whether attention runs in ``causal_attention``: where the kernel applies and is faster than torch's own.

    Args:
        query: [b, h, n, d].
        key: [b, h_kv, n, d].
        value: [b, h_kv, n, d].
        dropout: Probability of dropping a weight of the attention.
    """
    tensors = (query, key, value)
    if dropout or not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return False
    # The kernel reads one type, one head size and rows without gaps.
    if any(t.device.type != "cpu" or t.dtype != torch.bfloat16 or t.stride(-1) != 1 for t in tensors):
        return False
    return HAS_FLASH and query.shape[-1] == key.shape[-1] == value.shape[-1]


def uses_rms_norm_node(x: Tensor, weight: Tensor) -> bool:
    """Whether an RMS norm runs in one node, which has a gradient for x alone; without a gradient nothing is kept."""
    return not weight.requires_grad and x.requires_grad and torch.is_grad_enabled()


def uses_swiglu_node(gate: Tensor, up: Tensor) -> bool:
    """Whether the product silu(gate) ∘ up runs in one node; autograd promotes tensors of two types."""
    return torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad) and gate.dtype == up.dtype


# --- dropout --------------------------------------------------------------------------------------------------------


def uses_numpy_bits(device: torch.device) -> bool:
    """Whether numpy draws a mask: torch draws a float per value on a CPU, in a single thread."""
    return device.type == "cpu"


def mask_type(x: Tensor) -> torch.dtype | None:
    """The type of integers as wide as the values of x, for a product that keeps bits or clears them; None without."""
    return {2: torch.int16, 4: torch.int32}.get(x.element_size())
