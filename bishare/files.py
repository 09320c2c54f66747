"""Files and folders that appear whole: written under a temporary name in the same folder, then renamed.

A failure or a kill leaves the old file or the new file, never a part of either.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, *, single_writer: bool = False) -> Iterator[BinaryIO]:
    """A binary file, renamed to ``path`` when the block ends, over an earlier file; a failed block leaves nothing.

    Args:
        path: The file to write. Missing folders above are made.
        single_writer: Whether no second process writes ``path`` at the same time. The temporary name is then the same
            for all processes, so the next write replaces a file left by a kill.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part") if single_writer else _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # no longer there after a rename
    _sync_names(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file ``path``; errors as for :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace the file ``path`` by ``text`` in UTF-8; errors as for :func:`atomic_file`."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder, renamed to ``path`` when the block ends; a failed block leaves nothing.

    Args:
        path: The folder to make. An empty folder is replaced.

    Raises:
        OSError: The folder cannot be made, or ``path`` is a file or holds something.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rmdir()  # some systems rename onto an empty folder, some refuse
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name for this process alone, in the folder of ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _sync_names(folder: Path) -> None:
    """Write the names in a folder to the disk; a renamed file may otherwise have the old name after a crash."""
    if os.name == "nt":
        return  # Windows opens no folders
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
