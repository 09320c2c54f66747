"""Three transforms by which Bi-Share LoRA fits a shared pair of factors to a weight of any shape.

Zhou et al., "Bi-Share LoRA", ICML 2025, section 3.2. A transform is a map of pairs, built for each weight and level.
The adapter applies the scale of the update.

Shapes: r rank of the shared pair, s its size; in, out of the weight; the shared pair is A [r, s], B [s, r]
(Slice Sharing keeps the largest in and out instead of s).
"""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bishare.adapters.factors import Factors
from bishare.ops.assembly import Block

Position = Literal["center", "top-left", "bottom-right"]
KernelForm = Literal["shared", "r_1", "per_rank", "1_r", "r_2", "2_r"]
FitInit = Literal["kaiming_uniform", "kaiming_normal", "ones"]


def draw(weight: Tensor, init: FitInit) -> None:
    """Fill a gate or a kernel; both Kaiming forms have a = sqrt(5), as in ``nn.Linear`` (variance 1 / (3 fan-in))."""
    if init == "ones":
        nn.init.ones_(weight)
    elif init == "kaiming_normal":
        nn.init.kaiming_normal_(weight, a=math.sqrt(5))
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


class Transform(nn.Module):
    """Fits a shared pair to a weight: A [r, s], B [s, r] become A [r', in], B [out, r']."""

    role: ClassVar[str] = ""
    """Role of the transform's own parameters, if any."""

    def forward(self, shared: Factors) -> Factors:
        """The pair for this weight."""
        raise NotImplementedError

    def blocks(self, shared: Factors) -> tuple[Block, Block]:
        """The same pair as blocks, of stored matrices where the transform allows."""
        A, B = self(shared)
        return Block(A), Block(B)

    def reset_parameters(self) -> None:
        """Draw the initial values of the transform's own parameters."""


class Slice(Transform):
    """Slice Sharing: a window of a shared pair of the size of the largest weight (section 3.2.1)."""

    def __init__(self, in_features: int, out_features: int, max_in: int, max_out: int, position: Position) -> None:
        super().__init__()
        self.columns = _window(in_features, max_in, position)
        self.rows = _window(out_features, max_out, position)

    def forward(self, shared: Factors) -> Factors:
        return Factors(shared.A[:, self.columns], shared.B[self.rows])

    def blocks(self, shared: Factors) -> tuple[Block, Block]:
        return Block(shared.A, start=self.columns.start), Block(shared.B, start=self.rows.start)


def _window(length: int, total: int, position: Position) -> slice:
    start = {"top-left": 0, "center": (total - length) // 2, "bottom-right": total - length}[position]
    return slice(start, start + length)


class Gate(Transform):
    """Gate Transformation: gates carry the input into the shared pair and the output to the weight (section 3.2.2).

    delta W = G_ou (G_od B A G_iu) G_id. The product in brackets is a scalar, so the update has rank 1 for a shared
    pair of any rank: A' = G_id, B' = (G_od B A G_iu) G_ou.
    """

    role = "gate"

    def __init__(self, in_features: int, out_features: int, size: int, init: FitInit) -> None:
        super().__init__()
        self.init = init
        self.in_down = nn.Parameter(torch.empty(1, in_features))  # G_id
        self.in_up = nn.Parameter(torch.empty(size, 1))  # G_iu
        self.out_down = nn.Parameter(torch.empty(1, size))  # G_od
        self.out_up = nn.Parameter(torch.empty(out_features, 1))  # G_ou

    def forward(self, shared: Factors) -> Factors:
        return Factors(self.in_down, self.out_up * self._scalar(shared))

    def blocks(self, shared: Factors) -> tuple[Block, Block]:
        return Block(self.in_down), Block(self.out_up, self._scalar(shared))

    def _scalar(self, shared: Factors) -> Tensor:
        """G_od B A G_iu [..., 1, 1]."""
        chain = self.out_down, shared.B, shared.A, self.in_up
        if shared.A.dim() == 2:
            return _product(*chain)
        # A batched product would round differently, and an adapter's result would depend on its batch.
        return torch.stack([_product(*matrices) for matrices in zip(*chain, strict=True)])

    def reset_parameters(self) -> None:
        for gate in (self.in_down, self.in_up, self.out_down, self.out_up):
            draw(gate, self.init)


def _product(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return (a @ b) @ (c @ d)


class Kronecker(Transform):
    """Kronecker Extension: the shared pair repeated under learned kernels, A' = K_A (x) A, B' = K_B (x) B (3.2.3).

    The products are cut to ``in`` and ``out`` where these are no multiples of the size. Forms of the kernel for a
    level of rank r, named (rows of the shared part)_(rows of the kernel):

    - ``shared`` = ``r_1``: K_A [1, k_A], the same for all ranks (Algorithm 3); rank r.
    - ``per_rank``: K_A [r, k_A], row i of A' is K_A[i] (x) A[i] (text of section 3.2.3); rank r.
    - ``1_r``: 1 shared row under a kernel of r rows; rank r.
    - ``r_2``, ``2_r``: r shared rows under a kernel of 2 rows, and the reverse; rank 2 r.
    """

    role = "kernel"

    def __init__(
        self, in_features: int, out_features: int, *, rank: int, size: int, kernel: KernelForm, init: FitInit
    ) -> None:
        super().__init__()
        self.init = init
        self.in_features, self.out_features = in_features, out_features
        self.per_rank = kernel == "per_rank"
        rows = {"shared": 1, "r_1": 1, "per_rank": rank, "1_r": rank, "r_2": 2, "2_r": rank}[kernel]
        self.A = nn.Parameter(torch.empty(rows, math.ceil(in_features / size)))  # K_A [b, k_A]
        self.B = nn.Parameter(torch.empty(math.ceil(out_features / size), rows))  # K_B [k_B, b]

    @staticmethod
    def shared_rank(rank: int, kernel: KernelForm) -> int:
        """Rows of the shared A for a level of this rank."""
        return {"1_r": 1, "2_r": 2}.get(kernel, rank)

    def forward(self, shared: Factors) -> Factors:
        # k^T (x) S^T = (k (x) S)^T, so the same function extends B, transposed.
        A = self._extend(self.A, shared.A, self.in_features)
        return Factors(A, self._extend(self.B.T, shared.B.T, self.out_features).T)

    def blocks(self, shared: Factors) -> tuple[Block, Block]:
        return Block(shared.A, self.A, per_rank=self.per_rank), Block(shared.B, self.B, per_rank=self.per_rank)

    def _extend(self, kernel: Tensor, shared: Tensor, length: int) -> Tensor:
        """[b, k] and [a, s] to [b a, length], or row by row to [b, length] with a kernel per rank."""
        if self.per_rank:
            product = kernel.unsqueeze(2) * shared.unsqueeze(1)  # [r, k, s]
        else:
            product = kernel[:, None, :, None] * shared[None, :, None, :]  # [b, a, k, s]
        return product.reshape(-1, product.shape[-2] * product.shape[-1])[:, :length]

    def reset_parameters(self) -> None:
        draw(self.A, self.init)
        draw(self.B, self.init)
