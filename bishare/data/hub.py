"""Data sets on the hub, and folders that are laid out like them, by Hugging Face ``datasets``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bishare.errors import UserError

FILES = (".json", ".jsonl", ".parquet")
"""Endings of the files that are read without ``datasets``."""


def load_hub(source: str, split: str, subset: str | None, **options: Any) -> Any:  # Dataset or IterableDataset
    """A data set from a folder or the hub, by ``datasets``.

    Raises:
        UserError: If the data set cannot be loaded, for whatever reason.
    """
    import datasets  # takes seconds to import, and files do not need the package

    with errors_of_hub(f"{source} (split {split})"):
        return datasets.load_dataset(str(Path(source).expanduser()), subset, split=split, **options)


def files_of_folder(source: str, split: str, subset: str | None) -> list[Path] | None:
    """The files of a split of a local folder, as ``datasets`` finds them by their names or the folder's card.

    ``datasets`` 5.2 infers the types of JSON from the first 10 MB of a file: where a later value is a number, it writes
    quotation marks around every text of that part. So the files are read here instead, each with its own types.

    Returns:
        None if the source is no local folder, or a file of the split has another ending than ``FILES``.

    Raises:
        UserError: If the folder has no such split or subset.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        return None
    import datasets

    with errors_of_hub(f"{source} (split {split})"):
        found = datasets.load_dataset_builder(str(path), subset).config.data_files or {}
    splits = {str(name): files for name, files in found.items()}
    if split not in splits:
        raise UserError(f"{source} has no split {split}; it has {', '.join(splits) or 'no files of data'}.")
    paths = list(map(Path, splits[split]))
    return paths if all(file.suffix in FILES for file in paths) else None


@contextmanager
def errors_of_hub(source: str) -> Iterator[None]:
    """Turn every error of reading a folder or hub data set into a UserError of one line."""
    try:
        yield
    except Exception as error:  # without a common base: from HTTP clients, file systems, parsers, datasets itself
        raise UserError(
            f"The data set {source} cannot be loaded: {' '.join(str(error).split()).rstrip('.')}. "
            f"Check its name and the network, or give the path of a {', '.join(FILES[:-1])} or {FILES[-1]} file."
        ) from error
