"""The matrix product a b, in fp32 on a CPU through oneDNN where MKL, which ``torch.mm`` calls, is slower.

``dispatch.py`` says where, with the measurements. The operator used here is the operator emitted by ``torch.compile``
for a linear layer.

Shapes: a [m, k], b [k, n], result [m, n].
"""

import torch
from torch import Tensor

from bishare.ops.dispatch import uses_onednn, uses_parts

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
    if like_torch or not uses_onednn(a, b):
        return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
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
    if not uses_parts(h):
        return mm(h.T, g)
    whole = len(h) - len(h) % NUM_PARTS
    h_parts = torch.unflatten(h[:whole], 0, (NUM_PARTS, -1))
    g_parts = torch.unflatten(g[:whole], 0, (NUM_PARTS, -1))
    product = torch.bmm(h_parts.mT, g_parts).sum(0)
    # The last tokens, where the number of parts does not divide their number.
    return product if whole == len(h) else product.addmm_(h[whole:].T, g[whole:])
