"""The lock under which DeepSpeed builds an operator for CPUs, once on each machine.

A killed build leaves the lock, and every later run would wait for the lock without a word.
"""

import time
from pathlib import Path

from bishare.errors import UserError

OPERATOR = "deepspeed_shm_comm"
"""Adds up gradients through shared memory; DeepSpeed loads the operator whenever several processes begin."""

ABANDONED = 600.0
"""Seconds after which no build still runs; a build takes about a minute on two cores."""


def refuse_abandoned_build() -> None:
    """Raise if an earlier build was killed.

    Raises:
        UserError: Names the lock to be deleted.
    """
    from torch.utils.cpp_extension import _get_build_directory  # imports setuptools: 50 ms

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
