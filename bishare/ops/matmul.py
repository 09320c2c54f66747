"""The matrix product a b, in fp32 on a CPU through oneDNN where MKL, which ``torch.mm`` calls, is slower.

Measured with torch 2.13. On AMD processors with AVX-512, MKL reaches two thirds of oneDNN's speed, and half where a
matrix is thin, as in all products of an adapter. Without AVX-512, MKL takes 0.85 of oneDNN's time for the long products
of training, but oneDNN is faster for short and for thin products (x Aᵀ of an adapter: 0.5 to 0.9 of MKL's time). A
gradient's sum over many tokens is then taken in four parts at once, in 0.65 to 0.95 of the time of a single product.

In half precision ``torch.mm`` calls oneDNN itself. The operator used here is the operator emitted by ``torch.compile``
for a linear layer. Without the operator, and on processors other than x86, where nothing was measured, ``torch.mm``
forms every product.

Shapes: a [m, k], b [k, n], result [m, n].
"""

import platform

import torch
from torch import Tensor

_HAS_LINEAR = (
    platform.machine() in ("x86_64", "AMD64")
    and torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
MANY_ROWS = 512
"""From this number of rows of a on, a processor without AVX-512 takes ``torch.mm``, except for thin products."""
THIN = range(5, 25)
"""Columns of b that make a product thin; with fewer or more columns MKL is as fast."""
NUM_PARTS = 4
"""Parts of a sum over tokens. Two to sixteen parts took the same time."""
FEW_ROWS = 16
"""Up to this number of rows of a, the product is formed as (bᵀ aᵀ)ᵀ, in nine tenths of the time."""


def mm(a: Tensor, b: Tensor, bias: Tensor | None = None, *, like_torch: bool = False) -> Tensor:
    """a b + bias [m, n] outside autograd.

    Args:
        a: [m, k], or a transposed view.
        b: [k, n], or a transposed view.
        bias: [n].
        like_torch: Whether the result must equal the result of ``torch.mm`` bit by bit.
    """
    if like_torch or not through_onednn(a) or not _is_faster(a, b):
        return _torch_mm(a, b, bias)
    # For columns of a wider matrix oneDNN would take a hundred times as long.
    has_gaps = not (b.is_contiguous() or b.T.is_contiguous())
    if has_gaps or not a.numel() or not b.numel():
        return _torch_mm(a, b, bias)
    product: Tensor
    if 1 < len(a) <= FEW_ROWS and b.T.is_contiguous():
        few = a.contiguous()  # strided rows, for example some last tokens, would take seconds
        product = torch.ops.mkldnn._linear_pointwise(b.T, few, None, "none", [], "").T.contiguous()
        return product if bias is None else product.add_(bias)
    product = torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
    return product


def mm_over_tokens(h: Tensor, g: Tensor) -> Tensor:
    """hᵀ g [r, n], a sum over all tokens, outside autograd.

    Args:
        h: [tokens, r], or columns of a wider matrix.
        g: [tokens, n].
    """
    if _HAS_AVX512 or len(h) < MANY_ROWS or not through_onednn(h):
        return mm(h.T, g)
    whole = len(h) - len(h) % NUM_PARTS
    h_parts = torch.unflatten(h[:whole], 0, (NUM_PARTS, -1))
    g_parts = torch.unflatten(g[:whole], 0, (NUM_PARTS, -1))
    product = torch.bmm(h_parts.mT, g_parts).sum(0)
    # The last tokens, where the number of parts does not divide their number.
    return product if whole == len(h) else product.addmm_(h[whole:].T, g[whole:])


def through_onednn(a: Tensor) -> bool:
    """Whether products with ``a`` may bypass ``torch.mm``."""
    return _HAS_LINEAR and a.device.type == "cpu" and a.dtype == torch.float32


def _is_faster(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is faster than MKL; a transposed ``a`` belongs to a gradient, a sum over all tokens."""
    return _HAS_AVX512 or (a.is_contiguous() and (len(a) < MANY_ROWS or b.shape[1] in THIN))


def _torch_mm(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
