"""Reads instruction rows from a JSON or JSONL file, a folder or the hub, and says which file and row is at fault."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bishare.errors import UserError


class Row(NamedTuple):
    """One instruction with its answer, as Alpaca names the fields."""

    instruction: str
    input: str
    """Further context; empty if there is none."""
    output: str


def is_file(source: str) -> bool:
    """Whether a source is meant as a local file rather than a folder or a name on the hub."""
    path = Path(source).expanduser()
    return not path.is_dir() and (path.exists() or path.suffix in {".json", ".jsonl"})


def read_rows(source: str, *, split: str = "train") -> list[Row]:
    """Read all rows of a source.

    Args:
        source: A ``.json`` (list of objects) or ``.jsonl`` (one object per line) file, a folder with a data set as the
            hub stores it, or a data set's name on the hub.
        split: The split of a folder or hub data set; files have none.

    Raises:
        UserError: If it cannot be found or read, holds no rows, or a row lacks ``instruction`` or ``output``.
    """
    objects = _file_objects(Path(source).expanduser()) if is_file(source) else _hub_objects(source, split)
    rows = [_row(source, number, fields) for number, fields in objects]
    if not rows:
        raise UserError(f"{source} holds no rows.")
    return rows


def _file_objects(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the path of a .json or .jsonl file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return _list_objects(path, text) if text.lstrip().startswith("[") else _line_objects(path, text)


def _line_objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    # Only "\n" ends a line: str.splitlines would also split at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken(path, number, number, error) from error


def _list_objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(text), start=1)
    except json.JSONDecodeError as error:
        raise _broken(path, _broken_element(text), error.lineno, error) from error


def _broken_element(text: str) -> int:
    """Number of the first element of a JSON list that does not parse."""
    decoder, number = json.JSONDecoder(), 1
    place = text.index("[") + 1
    while True:
        try:
            _, end = decoder.raw_decode(text, _skip_space(text, place))
        except json.JSONDecodeError:
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


def _hub_objects(source: str, split: str) -> Iterable[tuple[int, Any]]:
    import datasets  # takes seconds to import; files do not need it

    try:
        found = datasets.load_dataset(str(Path(source).expanduser()), split=split)
    except Exception as error:  # its errors have no common base: HTTP clients, file systems, parsers, its own
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The data set {source} (split {split}) cannot be loaded: {reason}. "
            "Check its name and the network, or give the path of a .json or .jsonl file."
        ) from error
    return enumerate(found, start=1)


def _row(source: str, number: int, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise UserError(f"{source}, row {number}: {type(fields).__name__} found, want an object with named fields.")
    return Row(*(_text(source, number, fields, name) for name in Row._fields))


def _text(source: str, number: int, fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None and name == "input":
        return ""
    if value is None:
        found = ", ".join(map(str, fields)) or "none"
        raise UserError(f"{source}, row {number}: the field {name} is missing; fields found: {found}.")
    if not isinstance(value, str):
        raise UserError(f"{source}, row {number}: the field {name} is {type(value).__name__}, want text.")
    return value
