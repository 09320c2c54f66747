"""The matrix product a b, on the CPU in fp32 through oneDNN.

There ``torch.mm`` calls MKL, which reaches two thirds of oneDNN's speed on AMD's processors (torch 2.13), and half of
it where one matrix is thin, as all products of an adapter are. In half precision ``torch.mm`` calls oneDNN itself. The
operator is the one that ``torch.compile`` emits for a linear layer; without it, ``torch.mm`` does.
"""

import torch
from torch import Tensor

_HAS_LINEAR = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def mm(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias [m, n] of a [m, k], b [k, n] and bias [n], outside autograd; a and b may be transposed views."""
    if _HAS_LINEAR and a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() and b.numel():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
        return product
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
