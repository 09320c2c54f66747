"""Stops a run that trains nothing: the adapter's values are compared with the values three optimizer steps before."""

import torch
from torch import Tensor

from bishare.adapters.base import Adapter
from bishare.distributed.partitions import full_fp32
from bishare.errors import UserError

STEPS = 3
"""Applied steps before the check. Some groups rightly stand still at first: A has no gradient in the first step where B
starts at zero, and gates have no gradient before their scalar has left zero."""


class UpdateGuard:
    """Remembers an adapter's values, and later names a group without any change.

    Args:
        adapter: Frozen and dead parameters are exempt.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._before = {name: value.clone() for name, value in _values(adapter).items()}

    def check(self, adapter: Adapter) -> None:
        """Compare bitwise with the remembered values.

        Raises:
            UserError: All live parameters of a group are unchanged.
        """
        names = {id(p): name for name, p in adapter.named_parameters()}
        now = _values(adapter)
        for group, parameters in adapter.groups().items():
            # A merge may have made a parameter dead since.
            watched = {names[id(p)] for p in parameters} & now.keys() & self._before.keys()
            if watched and all(torch.equal(now[name], self._before[name]) for name in watched):
                raise UserError(
                    f"the parameters {group} have not changed in {STEPS} optimizer steps; training was stopped. "
                    "Check that their learning-rate factor is not 0 and that their gradients are finite."
                )


def _values(adapter: Adapter) -> dict[str, Tensor]:
    live = adapter.live_parameters()
    return dict(zip(live, full_fp32(list(live.values())), strict=True))
