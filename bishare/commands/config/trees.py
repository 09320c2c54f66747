"""Configurations as plain trees: parts are read from their files, and trees are laid over each other."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bishare.errors import UserError

PART_ENDINGS = (".yaml", ".yml", ".json")
ROWS = "path"
"""Key of the data modules for a file of rows; the file may end in ``.json`` and is no part."""


def names_part(value: Any, key: str = "") -> bool:
    """Whether the value of ``key`` is the name of a part: a file of settings."""
    return isinstance(value, str) and value.endswith(PART_ENDINGS) and key != ROWS


def load(file: Path) -> dict[str, Any]:
    """The settings of a file, with parts as names.

    Raises:
        UserError: The file cannot be read, is no YAML or holds no settings.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds no settings; want keys and values.")
    return tree


def read_tree(file: Path) -> dict[str, Any]:
    """The settings of a file, with the content of every part in the place of the name; errors as for :func:`load`."""
    return {key: _with_parts(value, file.parent, str(key)) for key, value in load(file).items()}


def _with_parts(node: Any, folder: Path, key: str = "") -> Any:
    """The value of ``key`` with the content of every part, read relative to ``folder``."""
    if names_part(node, key):
        return read_tree(folder / node)
    if isinstance(node, dict):
        return {name: _with_parts(value, folder, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_with_parts(value, folder) for value in node]
    return node


def files_of(file: Path) -> Iterator[Path]:
    """A configuration file and all parts, also parts of parts; missing files are left out."""
    if not file.is_file():
        return
    yield file
    for key, value in entries(load_or_none(file)):
        if names_part(value, key):
            yield from files_of(file.parent / value)


def entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a tree of mappings and lists, with the value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key), value
            yield from entries(value)
    elif isinstance(node, list):
        for value in node:
            yield from entries(value)


def load_or_none(file: Path) -> Any:
    """The content of a file; None for a file that cannot be read or is no YAML."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``above`` over ``below``; both stay unchanged.

    Mappings are merged, ``key+`` appends to a list, and all else replaces. A mapping with a new ``class_path`` replaces
    the arguments of the old class.
    """
    result = dict(below)
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        result.pop("init_args", None)
    for key, value in above.items():
        if key.endswith("+"):
            result[key[:-1]] = [*_list(result.get(key[:-1])), *_list(value)]
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = overlay(result[key], value)
        else:
            result[key] = value
    return result


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
