"""Main memory of this process and of the machine."""

import ctypes
import gc
import os
from pathlib import Path


def free_bytes() -> int:
    """Unused main memory in bytes; 0 on systems that do not report it."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def return_freed_memory() -> None:
    """Return freed memory to the system, on systems with glibc."""
    gc.collect()
    # Other C libraries have no such function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    """Main memory of this process in bytes; 0 on systems that do not report it."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
