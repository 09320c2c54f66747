"""The matrix product a b, on the CPU in fp32 through oneDNN where that is faster than MKL, which ``torch.mm`` calls.

On AMD's processors with AVX-512, MKL reaches two thirds of oneDNN's speed (torch 2.13), and half of it where one matrix
is thin, as all products of an adapter are. Without AVX-512 it is the other way round for the long products of training
(MKL takes 0.85 of oneDNN's time), but neither for short ones nor for thin ones (x Aᵀ of an adapter: oneDNN takes 0.5 to
0.9 of MKL's time). There a gradient's sum over many tokens is taken in four parts at once, which takes 0.65 to 0.95 of
the time of one. In half precision ``torch.mm`` calls oneDNN itself. The operator is the one that ``torch.compile``
emits for a linear layer; without it, and on other processors than x86, where nothing was measured, ``torch.mm`` does.
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
"""From so many rows of a on, a processor without AVX-512 takes ``torch.mm``, except for thin products."""
THIN = range(5, 25)
"""Columns of b that make a product thin; with fewer or more, MKL is as fast."""
NUM_PARTS = 4
"""Parts of a sum over tokens. Two to sixteen measured alike."""
FEW_ROWS = 16
"""Up to so many rows of a, the product is formed as (bᵀ aᵀ)ᵀ, which takes a tenth less time."""


def mm(a: Tensor, b: Tensor, bias: Tensor | None = None, *, like_torch: bool = False) -> Tensor:
    """a b + bias [m, n] outside autograd.

    Args:
        a: [m, k], or a transposed view.
        b: [k, n], or a transposed view.
        bias: [n].
        like_torch: Whether the result has to be that of ``torch.mm`` bit by bit.
    """
    # oneDNN would take a hundred times as long for columns of a wider b.
    whole = b.is_contiguous() or b.T.is_contiguous()
    if not like_torch and through_onednn(a) and _faster_there(a, b) and a.numel() and b.numel() and whole:
        product: Tensor
        if 1 < len(a) <= FEW_ROWS and b.T.is_contiguous():
            few = a.contiguous()  # strided rows, such as some last tokens, take seconds otherwise
            product = torch.ops.mkldnn._linear_pointwise(b.T, few, None, "none", [], "").T.contiguous()
            return product if bias is None else product.add_(bias)
        product = torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
        return product
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def mm_over_tokens(h: Tensor, g: Tensor) -> Tensor:
    """hᵀ g [r, n], a sum over all tokens, outside autograd.

    Args:
        h: [tokens, r], or columns of a wider one.
        g: [tokens, n].
    """
    if _HAS_AVX512 or len(h) < MANY_ROWS or not through_onednn(h):
        return mm(h.T, g)
    whole = len(h) - len(h) % NUM_PARTS
    first, second = (torch.unflatten(x[:whole], 0, (NUM_PARTS, -1)) for x in (h, g))
    product = torch.bmm(first.mT, second).sum(0)
    return product if whole == len(h) else product.addmm_(h[whole:].T, g[whole:])


def _faster_there(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is the faster one; a transposed ``a`` is one of a gradient's, with all tokens in its rows."""
    return _HAS_AVX512 or (a.is_contiguous() and (len(a) < MANY_ROWS or b.shape[1] in THIN))


def through_onednn(a: Tensor) -> bool:
    """Whether products with ``a`` may be taken past ``torch.mm``."""
    return _HAS_LINEAR and a.device.type == "cpu" and a.dtype == torch.float32
