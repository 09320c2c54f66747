"""The adapted weight: a frozen Linear that adds x Aᵀ Bᵀ to its output.

A module is adapted by changing its class, so its name, its weight and its state-dict keys stay what they were, and
removing the adapter is changing the class back.

Shapes: x [..., in], A [r, in], B [out, r], y [..., out].
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from bishare.adapters.base import Adapter, Factors, Slot


class SharedDropout:
    """One dropout mask for all weights that read the same input, e.g. q, k and v of a layer.

    Siblings are recognised at run time by the input's identity. The last result is kept until every sibling has
    read it.
    """

    def __init__(self, p: float, num_readers: int) -> None:
        self.p, self.num_readers = p, num_readers
        self._input: Tensor | None = None
        self._dropped: Tensor | None = None
        self._readers: set[str] = set()

    def __call__(self, x: Tensor, reader: str) -> Tensor:
        """The input [..., in] with features dropped; ``reader`` is the key of the slot that asks."""
        if self._input is not x or reader in self._readers or self._dropped is None:
            self._input, self._dropped, self._readers = x, F.dropout(x, self.p), set()
        self._readers.add(reader)
        dropped = self._dropped
        if len(self._readers) == self.num_readers:
            self._input = self._dropped = None
        return dropped


class AdaptedWeight(nn.Module):
    """What the adapted classes have in common: the adapter, the slot, and the update."""

    slot: Slot
    dropout: SharedDropout | None
    # The adapter is registered once, on the base model. A tuple hides it from this module, so that the state dict
    # has each shared parameter once.
    _adapter: tuple[Adapter]

    @property
    def adapter(self) -> Adapter:
        return self._adapter[0]

    def matrix(self) -> Tensor:
        """The frozen weight as [out, in], a view."""
        raise NotImplementedError

    def update(self, x: Tensor, y: Tensor) -> Tensor:
        """The output y of the frozen weight plus x Aᵀ Bᵀ, in y's type."""
        if self.adapter.merged:
            return y
        A, B = self.adapter.factors(self.slot)
        if self.training and self.dropout is not None:
            x = self.dropout(x, self.slot.key)
        h = F.linear(x, A.to(x.dtype))  # [..., r]
        return torch.addmm(y.flatten(0, -2), h.flatten(0, -2), B.T.to(h.dtype)).view_as(y)


class AdaptedLinear(AdaptedWeight, nn.Linear):
    """An adapted ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.update(x, F.linear(x, self.weight, self.bias))

    def matrix(self) -> Tensor:
        return self.weight


class AdaptedConv1D(AdaptedWeight, Conv1D):
    """An adapted Conv1D, GPT-2's Linear whose weight is stored as [in, out]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.update(x, Conv1D.forward(self, x))  # type: ignore[no-untyped-call]  # transformers' own

    def matrix(self) -> Tensor:
        return cast(Tensor, self.weight).T


ADAPTED: dict[type[nn.Module], type[AdaptedWeight]] = {nn.Linear: AdaptedLinear, Conv1D: AdaptedConv1D}
"""The module types that can be adapted, and what they become."""


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of an adaptable module, from its attributes: under ZeRO-3 the weight itself may be empty."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def delta(factors: Factors) -> Tensor:
    """The whole update B A [out, in] in fp32: for merging and tests, never for training."""
    return factors.B.float() @ factors.A.float()
