"""Main memory of this process and of the machine."""

import ctypes
import gc
import os
from pathlib import Path


def free_bytes() -> int:
    """Main memory that nothing uses; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def return_freed_memory() -> None:
    """Let the C library give freed memory back to the system, where it can (glibc)."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def resident_bytes() -> int:
    """Main memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
