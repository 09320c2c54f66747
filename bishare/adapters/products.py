"""The matrix product a b, on the CPU in fp32 through oneDNN.

There ``torch.mm`` calls MKL, which reaches two thirds of oneDNN's speed on AMD's processors (torch 2.13), and half of
it where one matrix is thin, as all products of an adapter are. In half precision ``torch.mm`` calls oneDNN itself. The
operator is the one that ``torch.compile`` emits for a linear layer; without it, and on other processors than x86, where
nothing was measured, ``torch.mm`` does.
"""

import platform

import torch
from torch import Tensor

_HAS_LINEAR = (
    platform.machine() in ("x86_64", "AMD64")
    and torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
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
    if not like_torch and through_onednn(a) and a.numel() and b.numel() and (b.is_contiguous() or b.T.is_contiguous()):
        product: Tensor
        if 1 < len(a) <= FEW_ROWS and b.T.is_contiguous():
            few = a.contiguous()  # strided rows, such as some last tokens, take seconds otherwise
            product = torch.ops.mkldnn._linear_pointwise(b.T, few, None, "none", [], "").T.contiguous()
            return product if bias is None else product.add_(bias)
        product = torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
        return product
    # Columns of a wider b too: oneDNN would take a hundred times as long for them.
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def through_onednn(a: Tensor) -> bool:
    """Whether products with ``a`` are taken past ``torch.mm``."""
    return _HAS_LINEAR and a.device.type == "cpu" and a.dtype == torch.float32
