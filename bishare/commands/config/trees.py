"""Configurations as plain trees: the files that they name are read, and one tree is laid over another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bishare.errors import UserError


def load(file: Path) -> dict[str, Any]:
    """The settings of a file as they stand.

    Raises:
        UserError: It cannot be read, is no YAML or holds no settings.
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
    """The settings of a file, with the parts that it names in their places; errors as for :func:`load`."""
    return {key: _with_parts(value, file.parent) for key, value in load(file).items()}


def _with_parts(node: Any, folder: Path) -> Any:
    """The same node; texts that name a YAML file, relative to the file they stand in, are replaced by its content."""
    if isinstance(node, str) and node.endswith((".yaml", ".yml")):
        return read_tree(folder / node)
    if isinstance(node, dict):
        return {key: _with_parts(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_parts(value, folder) for value in node]
    return node


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, both unchanged: mappings are merged, ``key+`` appends to a list, all else replaces.

    A mapping that names another class than the one below it replaces that one.
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
    return value if isinstance(value, list) else [] if value is None else [value]
