"""The lock under which DeepSpeed builds its operator for CPUs, once on each machine.

A build that is killed leaves the lock, and every later run would wait for it without a word.
"""

import time
from pathlib import Path

from bishare.errors import UserError

OPERATOR = "deepspeed_shm_comm"
"""Adds up gradients through shared memory; DeepSpeed asks for it whenever several processes begin."""

ABANDONED = 600.0
"""Seconds after which no build still runs; it takes about one minute on two cores."""


def refuse_abandoned_build() -> None:
    """Raise if an earlier build was killed.

    Raises:
        UserError: Naming the lock that is to be deleted.
    """
    from torch.utils.cpp_extension import _get_build_directory  # with setuptools, 50 ms that no other run pays

    lock = Path(_get_build_directory(OPERATOR, verbose=False), "lock")
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    if age > ABANDONED:
        raise UserError(
            f"{lock} is {age / 60:.0f} minutes old: a run was killed while DeepSpeed built {OPERATOR}, "
            "and all others would wait for it; delete this file and start again."
        )
