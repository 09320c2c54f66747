"""Reads the fields of a row of training data; every error names the file, the row and the field."""

import json
from typing import Any

from bishare.errors import UserError


def check_object(fields: Any, where: str) -> None:
    """Raise a UserError unless the row is an object."""
    if not isinstance(fields, dict):
        raise UserError(f"{where}: {type(fields).__name__} found, want an object with named fields.")


def field_of(fields: dict[str, Any], name: str, where: str) -> Any:
    """The value of a required field; ``where`` names file and row.

    Raises:
        UserError: If the field is missing or null.
    """
    if name not in fields:
        raise UserError(f"{where}: the field {name} is missing; fields found: {', '.join(map(str, fields)) or 'none'}.")
    if fields[name] is None:
        raise UserError(f"{where}: the field {name} is null; give a value, or leave the row out.")
    return fields[name]


def text_of(fields: dict[str, Any], name: str, where: str, *, optional: bool = False) -> str:
    """The text of a field; empty if the field is optional and missing or null.

    Raises:
        UserError: If a required field is missing, or the value is not text or holds half of a character.
    """
    if optional and fields.get(name) is None:
        return ""
    value = field_of(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: the field {name} is {type(value).__name__}, want text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # A JSON escape may write one half of a pair; no tokenizer takes such a text.
        raise UserError(
            f"{where}: the field {name} holds half of a character (a lone surrogate) at position {error.start + 1:,}; "
            "write the text as UTF-8."
        ) from error
    return value


def list_of(value: Any, name: str, where: str) -> list[Any]:
    """The value, which must be a list.

    Raises:
        UserError: If the value is something else.
    """
    if not isinstance(value, list):
        raise UserError(f"{where}: the field {name} is {type(value).__name__}, want a list.")
    return value


def to_json(value: Any, name: str, where: str) -> str:
    """The JSON text of a value.

    Raises:
        UserError: If the value cannot be written as JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: the field {name} cannot be written as JSON: {error}.") from error


def from_json(text: str, name: str, where: str) -> Any:
    """The value that a JSON text means.

    Raises:
        UserError: If the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the field {name} is not JSON: {error}.") from error
