"""Reads rows from a JSON, JSONL or Parquet file, a folder or the hub; errors name the file and the row."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from bishare.data.hub import FILES, files_of_folder, load_hub
from bishare.data.rows import AnyRow, Format, detect_format, parse_row
from bishare.errors import UserError

Numbered = Iterable[tuple[int, Any]]
"""Rows with their numbers from 1 (for JSONL: numbers of lines, some of which may be empty)."""


def is_file(source: str) -> bool:
    """Whether a source is meant as a local file rather than a folder or a name on the hub."""
    path = Path(source).expanduser()
    # A missing file with a known ending is a file: the user then reads that the file does not exist.
    return not path.is_dir() and (path.exists() or path.suffix in FILES)


def is_local(source: str) -> bool:
    """Whether a source needs no download: a file or a folder."""
    return is_file(source) or _path(source).is_dir()


def read_rows(source: str, *, split: str = "train", subset: str | None = None, format: Format = "auto") -> list[AnyRow]:
    """Read all rows of a source.

    Args:
        source: A ``.json`` (list of objects), ``.jsonl`` (one object per line) or ``.parquet`` file, a folder with a
            data set as the hub stores it, or a data set's name on the hub.
        split: The split of a folder or hub data set; files have none.
        subset: The configuration of a hub data set with several configurations.
        format: Fields of the rows; ``auto`` goes by the first row of each file.

    Raises:
        UserError: If the source cannot be found or read or holds no rows, or a row lacks a field of the format.
    """
    unused: Counter[str] = Counter()
    rows: list[AnyRow] = []
    for name, objects in read_parts(source, split=split, subset=subset):
        rows += parse_rows(objects, name, format, unused)
    if not rows:
        raise UserError(f"{source} holds no rows.")
    if unused:
        counts = ", ".join(f"{name} ({count:,} times)" for name, count in unused.most_common())
        rank_zero_info(f"Data: fields of {source} that are not used: {counts}.")
    return rows


def read_parts(source: str, *, split: str = "train", subset: str | None = None) -> Iterator[tuple[str, Numbered]]:
    """The files of a source by name, each with its rows; arguments and errors as for :func:`read_rows`."""
    files = [_path(source)] if is_file(source) else files_of_folder(source, split, subset)
    if files is None:
        yield source, enumerate(load_hub(source, split, subset), start=1)
        return
    for file in files:
        yield str(file), _file_objects(file)


def read_objects(source: str, *, split: str = "train", subset: str | None = None) -> Numbered:
    """The rows of a source with their numbers in their file; arguments and errors as for :func:`read_rows`."""
    for _, objects in read_parts(source, split=split, subset=subset):
        yield from objects


def parse_rows(objects: Numbered, source: str, format: Format, unused: Counter[str] | None = None) -> Iterator[AnyRow]:
    """The rows of objects with named fields, all in the same format; ``unused`` counts the fields that are not used."""
    for number, fields in objects:
        where = f"{source}, row {number}"
        if format == "auto":  # the first row decides for all
            format = detect_format(fields, where)
        yield parse_row(fields, format, where, unused)


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[int, str]]:
    """The non-empty lines of a text file and their numbers from 1, without the first ``start`` lines."""
    with _errors_of(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        # Only "\n" ends a line: str.splitlines would also split at characters that JSON allows inside a string.
        for number, line in enumerate(file, start=1):
            if number > start and line.strip():
                yield number, line


def parse_line(path: Path, number: int, line: str) -> Any:
    """The object in a line.

    Raises:
        UserError: If the line is not JSON.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _broken(path, number, number, error) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, number, error) from error


def read_parquet(path: Path, start: int = 0) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet file and their numbers from 1, read group by group, without the first ``start`` rows."""
    import pyarrow as pa  # type: ignore[import-untyped]  # comes with datasets
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with _errors_of(path), pq.ParquetFile(path) as file:
            number = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if number + num_rows <= start:  # skipped whole: its bytes are never read
                    number += num_rows
                    continue
                for batch in file.iter_batches(row_groups=[group], batch_size=1000):
                    for fields in batch.to_pylist():
                        number += 1
                        if number > start:
                            yield number, fields
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file that can be read: {_one_line(error)}.") from error


def _path(source: str) -> Path:
    return Path(source).expanduser()


def _file_objects(path: Path) -> Numbered:
    if path.suffix == ".parquet":
        return read_parquet(path)
    with _errors_of(path):
        text = path.read_text(encoding="utf-8-sig")
    # By the content: a .json file may hold lines, and a .jsonl file a list.
    if text.lstrip().startswith("["):
        return _list_objects(path, text)
    return _line_objects(path, text)


def _line_objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_line(path, number, line)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a UserError of one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the path of a {', '.join(FILES)} file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or _one_line(error)}.") from error


def _list_objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(text), start=1)
    except json.JSONDecodeError as error:
        raise _broken(path, _broken_element(text), error.lineno, error) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, _broken_element(text), error) from error


def _broken_element(text: str) -> int:
    """Number of the first element of a JSON list with broken JSON."""
    # JSON's own error has the line and column only; the elements before parse one by one.
    decoder, number = json.JSONDecoder(), 1
    place = text.index("[") + 1
    while True:
        try:
            _, end = decoder.raw_decode(text, _skip_space(text, place))
        except (ValueError, RecursionError):
            return number
        place = _skip_space(text, end)
        if text[place : place + 1] != ",":
            return number
        place, number = place + 1, number + 1


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


def _broken(path: Path, number: int, line: int, error: json.JSONDecodeError) -> UserError:
    return UserError(
        f"{path}, row {number}: broken JSON ({error.msg}, line {line}, column {error.colno}); "
        "want a list of objects, or one object per line."
    )


def _unreadable(path: Path, number: int, error: Exception) -> UserError:
    """JSON that Python does not read: nested too deeply, or with a number of thousands of digits."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else _one_line(error).partition(";")[0]
    return UserError(f"{path}, row {number}: this JSON cannot be read ({reason}); simplify the row or leave it out.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
