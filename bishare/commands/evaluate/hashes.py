"""SHA-256 of the files that a score belongs to."""

import hashlib
from pathlib import Path

from bishare.adapters.checkpoint import WEIGHTS
from bishare.errors import UserError
from bishare.models.sources import Source

WEIGHT_FILES = (".safetensors", ".bin")


def adapter_hash(folder: str | Path) -> str:
    """Of the adapter's values and configuration, which one file holds."""
    return _hash([Path(folder, WEIGHTS)])


def base_hash(source: Source) -> str | None:
    """Of a local base model's weights, all files in the order of their names; None for a name on the hub."""
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
