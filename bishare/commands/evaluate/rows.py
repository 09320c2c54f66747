"""Rows of a local file in the harness's form; the task files of this folder call :func:`read`."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare.data.row_files import parse_line, read_lines
from bishare.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def read(*, files: Mapping[str, str], data: str = "", subject: str = "", **_: object) -> "dict[str, Dataset]":
    """Read every split of a task.

    Args:
        files: By split, a JSONL file inside ``data``. Rows have the fields ``question`` and ``answer``; for multiple
            choice also ``choices``, with the index of the right choice as ``answer``.
        data: Folder of the files; without ``evaluate``, ``lm_eval --metadata '{"data": "FOLDER"}'``.
        subject: Keep the rows of this ``subject``; empty for all rows.

    Raises:
        UserError: A file is missing, no row is left, or a row lacks a field.
    """
    from datasets import Dataset  # takes seconds to import

    if not data:
        raise UserError("""the folder of the rows is not given; add --metadata '{"data": "FOLDER"}'.""")
    splits = {}
    for split, name in files.items():
        path = Path(data, name)
        rows = [row for row in _rows(path) if not subject or row.get("subject") == subject]
        if not rows:
            of_subject = f" with subject {subject!r}" if subject else ""
            raise UserError(f"{path} holds no row{of_subject}.")
        splits[split] = Dataset.from_list(rows)
    return splits


@functools.lru_cache(maxsize=4)  # 57 subjects read the same two files
def _rows(path: Path) -> list[dict[str, Any]]:
    return [_checked(parse_line(path, number, line), f"{path}, row {number}") for number, line in read_lines(path)]


def _checked(row: Any, where: str) -> dict[str, Any]:
    """The row itself; an error for a missing field or an answer that is no choice."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}; want an object with question and answer.")
    for name in ("question", "answer"):
        if name not in row:
            raise UserError(f"{where} has no {name!r}; it has {', '.join(row) or 'no fields'}.")
    choices = row.get("choices")
    if choices is None:
        return row
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"{where}: choices is {choices!r}; want a list of two texts or more.")
    if type(row["answer"]) is not int or not 0 <= row["answer"] < len(choices):
        raise UserError(f"{where}: answer is {row['answer']!r}; want an index of its {len(choices)} choices, from 0.")
    return row
