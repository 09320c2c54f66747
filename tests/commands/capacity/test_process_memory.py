"""Memory of this process and of the machine."""

import ctypes

import pytest
import torch

from bishare.commands.capacity.process_memory import free_bytes, resident_bytes, return_freed_memory

needs_proc = pytest.mark.skipif(resident_bytes() == 0, reason="the system does not tell a process's memory")


@needs_proc
def test_process_grows_by_what_it_holds() -> None:
    return_freed_memory()
    before = resident_bytes()
    held = torch.ones(50_000_000, dtype=torch.uint8)
    assert 0.9 * held.nbytes < resident_bytes() - before < 1.5 * held.nbytes


@needs_proc
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc returns memory on request")
def test_freed_memory_is_returned() -> None:
    blocks = [bytes(60_000) for _ in range(1000)]
    last = bytes(60_000)  # keeps the allocator from shrinking its heap on its own
    del blocks
    before = resident_bytes()
    return_freed_memory()
    assert before - resident_bytes() > 30_000_000
    assert len(last) == 60_000


def test_free_memory_is_less_than_a_petabyte() -> None:
    assert 0 <= free_bytes() < 10**15
