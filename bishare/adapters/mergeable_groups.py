"""A mergeable group: one B per layer over a shared A, the owner of each, and the running means they are compared by.

Hu et al., 2024 (arXiv:2412.10135), section 3. A merge is a re-tie: the lower layer from then on uses the upper layer's
B. Every B stays a parameter of its own and no value is written; only the layer's entry in ``owner`` changes, and
autograd sums the gradients of all layers that read one B. A B that no layer reads is dead.

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
    """Layers whose Bs may become one.

    ``owner`` and ``mean`` are buffers, so that a checkpoint brings them back with the weights. Forward reads a tuple
    of ints instead: a buffer would be a device sync, fails on the meta device and breaks a compiled graph.

    Args:
        name: ``level.kind``, e.g. ``local.q``, or ``intra``.
        layers: Layer of each member, ascending.
        names: Name of each member's B in ``B``.
        B: The level's stored Bs.
        A: The level's stored As.
        a: Name of the A that all members read.
        shape: Of every B: (out, r).
        fits: The Kronecker transforms through which each member's B acts, if any; see :meth:`compared`.
    """

    owner: Tensor  # [n], int64: the member whose B each member uses
    mean: Tensor  # [n, out, r], fp32: mean over all optimizer steps; a dead member's stays as it was when it was tied
    num_steps: Tensor  # [], int64: optimizer steps that the means hold

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
        self._fits = tuple(tuple(of_member) for of_member in fits)
        self.owners = tuple(range(len(names)))
        self.steps = 0
        self.register_buffer("owner", torch.arange(len(names)))
        self.register_buffer("mean", torch.zeros(len(names), *shape, dtype=torch.float32))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]  # torch's own

    # --- who uses whose B --------------------------------------------------------------------------------------

    def uses(self, name: str) -> str:
        """Name of the B that the member called ``name`` uses: its own, or its owner's."""
        return self.names[self.owners[self._index[name]]]

    @property
    def live(self) -> list[int]:
        """Members that own their B, in layer order."""
        return [i for i, owner in enumerate(self.owners) if owner == i]

    @property
    def num_merges(self) -> int:
        return len(self.owners) - len(self.live)

    def members(self) -> list[nn.Parameter]:
        """Every member's own B, dead ones included."""
        return [self._B[0][name] for name in self.names]

    def dead_parameters(self) -> list[nn.Parameter]:
        """The Bs that no layer reads any more."""
        return [self._B[0][self.names[i]] for i, owner in enumerate(self.owners) if owner != i]

    def shared_a(self) -> nn.Parameter:
        """The A that all members read."""
        A = self._A[0][self.a]
        assert isinstance(A, nn.Parameter)
        return A

    def tie(self, lower: int, upper: int) -> None:
        """Let the layer ``lower``, and every layer that uses its B, use the B of ``upper`` from now on."""
        assert lower < upper
        assert {lower, upper} <= set(self.live)
        self.owners = tuple(upper if owner == lower else owner for owner in self.owners)
        self.owner.copy_(torch.tensor(self.owners))

    def refresh(self) -> None:
        """Read the buffers again, after their values were loaded.

        Raises:
            UserError: The owner map is none: owners must own themselves and lie at or above their layer.
        """
        if self.owner.is_meta:
            return
        owners, n = tuple(self.owner.tolist()), len(self.names)
        if not all(i <= owner < n and owners[owner] == owner for i, owner in enumerate(owners)):
            raise UserError(f"{self.name}: {list(owners)} is no owner map; the file is damaged, use another copy.")
        self.owners, self.steps = owners, int(self.num_steps)

    def reset(self) -> None:
        """Every layer uses its own B again, and the means forget all steps."""
        self.owners, self.steps = tuple(range(len(self.names))), 0
        self.owner.copy_(torch.arange(len(self.names)))
        self.mean.zero_()
        self.num_steps.zero_()

    # --- what is compared --------------------------------------------------------------------------------------

    def sources(self) -> list[nn.Parameter]:
        """The parameters from which :meth:`compared` works: the live Bs, then their kernels."""
        Bs = [self._B[0][self.names[i]] for i in self.live]
        fits = [fit for i in self.live for fit in self._fits[i]] if self._fits else []
        return Bs + [kernel for fit in fits for kernel in (fit.A, fit.B)]

    def compared(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The live Bs [out, r] in the form in which they are compared, fp32.

        Under Kronecker kernels a B has no scale of its own: ``K_B -> c K_B, B -> B / c`` for all targets of a layer,
        and ``K_A -> c K_A, K_B -> K_B / c`` for one target, leave the model as it is. The update of target t is
        ``(K_B K_A) (x) (B A)``, so its norm is ``|K_B K_A| |B A|``, and the squared norms of a layer's targets add up
        to their number times ``(w |B A|)^2`` with w the root mean square of ``|K_B K_A|`` over them. ``w B`` is what
        is compared: it has the size of the update and changes under neither transformation. With one kernel per rank
        the same holds column by column. (Blocks that are cut off where the size does not divide count too.)

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
        """Root mean square over each live member's targets of |K_B K_A|: [live, 1], or [live, r] by column."""
        alike = defaultdict(list)  # kernels of one shape are measured together
        position = 0
        live = self.live
        for row, i in enumerate(live):
            for _ in self._fits[i]:
                K_A, K_B = values[position].float(), values[position + 1].float()
                alike[K_A.shape, K_B.shape].append((row, K_A, K_B))
                position += 2
        total: Tensor | None = None
        for group in alike.values():
            rows, As, Bs = zip(*group, strict=True)
            K_A, K_B = torch.stack(As), torch.stack(Bs)  # [m, b, k_A], [m, k_B, b]
            if self._fits[0][0].per_rank:
                squares = K_A.square().sum(2) * K_B.square().sum(1)
            else:
                squares = ((K_B.mT @ K_B) * (K_A @ K_A.mT)).sum((1, 2)).unsqueeze(1)
            if total is None:
                total = squares.new_zeros(len(live), squares.shape[1])
            total.index_add_(0, torch.tensor(rows, device=total.device), squares)
        assert total is not None
        num_targets = torch.tensor([[len(self._fits[i])] for i in live], device=total.device)
        return (total / num_targets).sqrt()

    @torch.no_grad()
    def observe(self, values: Sequence[Tensor]) -> None:
        """Take the Bs of one more optimizer step into the running means (eq. 3).

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
