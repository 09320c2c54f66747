"""SHA-256 of the files behind a score."""

import hashlib
from pathlib import Path

from bishare.adapters.checkpoint import WEIGHTS
from bishare.errors import UserError
from bishare.models.sources import Source

WEIGHT_FILES = (".safetensors", ".bin")


def adapter_hash(folder: str | Path) -> str:
    """Hash of the adapter's file, which holds values and configuration."""
    return _hash([Path(folder, WEIGHTS)])


def base_hash(source: Source) -> str | None:
    """Hash of a local base model's weight files, in the order of the names; None for a base on the hub."""
    folder = Path(source.location)
    if source.gguf_file:
        return _hash([folder / source.gguf_file])
    if not folder.is_dir():
        return None
    return _hash(sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_FILES))


def _hash(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
