"""A mergeable group: a B per layer over a shared A, the owner of each B, and the running means of all Bs.

Hu et al., 2024 (arXiv:2412.10135), section 3. A merge changes an owner: from then on the lower layer uses the upper
layer's B. Every B stays a separate parameter and no value is written. Only the layer's entry in ``owner`` changes, and
autograd sums the gradients of all layers with the same owner. A B without readers is dead.

Shapes: n layers; A [r, in], B [out, r]; mean [n, out, r]. Members are numbered in layer order, 0 to n - 1.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bishare.errors import UserError

if TYPE_CHECKING:
    from bishare.adapters.transforms import Kronecker


class MergeableGroup(nn.Module):
    """Layers that may merge, so that several layers share a B.

    ``owner`` and ``mean`` are buffers, to be stored in checkpoints with the weights. The forward pass reads a tuple of
    ints instead: reading a buffer synchronises the device, fails on the meta device and breaks a compiled graph.

    Args:
        name: ``level.kind``, e.g. ``local.q``, or ``intra``.
        layers: Layer of each member, ascending.
        names: Name of each member's B in ``B``.
        B: The level's stored Bs.
        A: The level's stored As.
        a: Name of the A read by all members.
        shape: Shape of every B: (out, r).
        fits: The Kronecker transforms of each member's B, if any; see :meth:`compared`.
    """

    owner: Tensor  # [n], int64: for each member, the member whose B is used
    mean: Tensor  # [n, out, r], fp32: mean over all optimizer steps; of a dead member, over the steps before the merge
    num_steps: Tensor  # [], int64: optimizer steps in the means

    def __init__(
        self,
        name: str,
        *,
        layers: Sequence[int],
        names: Sequence[str],
        B: nn.ParameterDict,
        A: nn.ParameterDict,
        a: str,
        shape: tuple[int, int],
        fits: Sequence[Sequence["Kronecker"]] = (),
    ) -> None:
        super().__init__()
        assert list(layers) == sorted(set(layers))
        self.name, self.layers, self.names = name, tuple(layers), tuple(names)
        self.shape, self.a = shape, a
        self._index = {member: i for i, member in enumerate(names)}
        # Tuples hide the stores from this module, so that the state dict has each parameter once.
        self._A, self._B = (A,), (B,)
        self._fits = [tuple(transforms) for transforms in fits]
        self.owners = tuple(range(len(names)))
        self.steps = 0
        self.register_buffer("owner", torch.arange(len(names)))
        self.register_buffer("mean", torch.zeros(len(names), *shape, dtype=torch.float32))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]  # torch's own

    # --- who uses whose B --------------------------------------------------------------------------------------

    def uses(self, name: str) -> str:
        """Name of the B used by the member ``name``: the B of the member's owner."""
        return self.names[self.owners[self._index[name]]]

    @property
    def live(self) -> list[int]:
        """Members that use their own B, in layer order."""
        return [i for i, owner in enumerate(self.owners) if owner == i]

    @property
    def num_merges(self) -> int:
        return len(self.owners) - len(self.live)

    def members(self) -> list[nn.Parameter]:
        """Every member's own B, dead Bs included."""
        return [self._B[0][name] for name in self.names]

    def dead_parameters(self) -> list[nn.Parameter]:
        """The Bs without readers."""
        return [self._B[0][self.names[i]] for i, owner in enumerate(self.owners) if owner != i]

    def shared_a(self) -> nn.Parameter:
        """The A read by all members."""
        A = self._A[0][self.a]
        assert isinstance(A, nn.Parameter)
        return A

    def tie(self, lower: int, upper: int) -> None:
        """Let the layer ``lower``, and every layer that uses the B of ``lower``, use the B of ``upper`` from now on."""
        assert lower < upper
        assert {lower, upper} <= set(self.live)
        self.owners = tuple(upper if owner == lower else owner for owner in self.owners)
        self.owner.copy_(torch.tensor(self.owners))

    def refresh(self) -> None:
        """Read the buffers again, after values were loaded.

        Raises:
            UserError: The owner map is invalid: an owner must own itself and lie at or above the layer.
        """
        if self.owner.is_meta:
            return
        owners, n = tuple(self.owner.tolist()), len(self.names)
        is_valid = all(i <= owner < n and owners[owner] == owner for i, owner in enumerate(owners))
        if not is_valid:
            raise UserError(f"{self.name}: {list(owners)} is no owner map; the file is damaged, use another copy.")
        self.owners, self.steps = owners, int(self.num_steps)

    def reset(self) -> None:
        """Give every layer its own B again, and clear the means."""
        self.owners, self.steps = tuple(range(len(self.names))), 0
        self.owner.copy_(torch.arange(len(self.names)))
        self.mean.zero_()
        self.num_steps.zero_()

    # --- what is compared --------------------------------------------------------------------------------------

    def sources(self) -> list[nn.Parameter]:
        """The parameters read by :meth:`compared`: the live Bs, then their kernels."""
        found = [self._B[0][self.names[i]] for i in self.live]
        if not self._fits:
            return found
        for i in self.live:
            for fit in self._fits[i]:
                found += [fit.A, fit.B]
        return found

    def compared(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The live Bs [out, r] in the form for comparison, fp32: B itself, or under Kronecker kernels ``w B``.

        Kronecker kernels leave the scale of B undetermined. The model is unchanged by ``K_B -> c K_B, B -> B / c`` for
        all targets of a layer, and by ``K_A -> c K_A, K_B -> K_B / c`` for a single target. The update of a target is
        ``(K_B K_A) (x) (B A)``, with the norm ``|K_B K_A| |B A|``. Over the m targets of a layer, the squared norms add
        up to ``m (w |B A|)^2``, where w is the root mean square of ``|K_B K_A|``. So ``w B`` has the size of the update
        and changes under neither transformation. With a kernel per rank the same holds column by column. Blocks cut
        off by a size that is no divisor count too.

        Args:
            values: Full fp32 values of :meth:`sources`.
        """
        num = len(self.live)
        Bs = [value.float() for value in values[:num]]
        if not self._fits:
            return Bs
        scales = self._kernel_norms(values[num:])
        return [B * scale for B, scale in zip(Bs, scales.unbind(0), strict=True)]

    def _kernel_norms(self, values: Sequence[Tensor]) -> Tensor:
        """Root mean square of |K_B K_A| over the targets of each live member: [live, 1], or [live, r] by column."""
        same_shape = defaultdict(list)  # kernels of the same shape are measured together
        position = 0
        live = self.live
        for row, i in enumerate(live):
            for _ in self._fits[i]:
                K_A, K_B = values[position].float(), values[position + 1].float()
                same_shape[K_A.shape, K_B.shape].append((row, K_A, K_B))
                position += 2
        total: Tensor | None = None
        for group in same_shape.values():
            rows, As, Bs = zip(*group, strict=True)
            K_A, K_B = torch.stack(As), torch.stack(Bs)  # [m, b, k_A], [m, k_B, b]
            if self._fits[0][0].per_rank:
                squares = K_A.square().sum(2) * K_B.square().sum(1)
            else:
                # |K_B K_A|^2 as the trace of products of small Gram matrices [b, b].
                squares = ((K_B.mT @ K_B) * (K_A @ K_A.mT)).sum((1, 2)).unsqueeze(1)
            if total is None:
                total = squares.new_zeros(len(live), squares.shape[1])
            total.index_add_(0, torch.tensor(rows, device=total.device), squares)
        assert total is not None
        num_targets = torch.tensor([[len(self._fits[i])] for i in live], device=total.device)
        return (total / num_targets).sqrt()

    @torch.no_grad()
    def observe(self, values: Sequence[Tensor]) -> None:
        """Add the Bs of an optimizer step to the running means (eq. 3).

        Args:
            values: Full fp32 values of :meth:`sources`.
        """
        self.steps += 1
        self.num_steps.fill_(self.steps)
        means = self.mean.unbind(0)
        torch._foreach_lerp_([means[i] for i in self.live], self.compared(values), 1.0 / self.steps)


def _refresh(group: nn.Module, incompatible: Any) -> None:
    assert isinstance(group, MergeableGroup)
    group.refresh()
