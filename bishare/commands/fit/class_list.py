"""The end of ``fit --help``: the project's classes for a configuration, each with the first sentence of its docstring.

The sources are read as text. Importing data modules and callbacks would take seconds, and jsonargparse lists only
imported classes.
"""

import ast
import re
import textwrap
from collections.abc import Container, Iterator
from pathlib import Path

from bishare.shipped import shipped_folder

PACKAGE = Path(__file__).parents[2]
"""The folder ``bishare``."""

SECTIONS = {
    "trainer.callbacks": ("callbacks", shipped_folder("callbacks"), ""),
    "data.class_path": ("bishare.data", PACKAGE / "data", ""),
    "model.adapter.class_path": ("bishare", PACKAGE, "Config"),
}
"""By key of the configuration: package as named in configurations, folder of the package, end of the class names."""

INDENT, WIDTH = 24, 80
"""Columns of jsonargparse's own help, outside a terminal."""


def class_list() -> str:
    """Text of all sections."""
    sections = []
    for key, (package, folder, ending) in SECTIONS.items():
        lines = [f"Classes for {key} (--{key.removesuffix('.class_path')}.help NAME shows options):"]
        for name, sentence in sorted(public_classes(folder, ending)):
            lines.append(_entry(f"{package}.{name}", sentence))
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def public_classes(folder: Path, ending: str = "") -> Iterator[tuple[str, str]]:
    """Name and first sentence of a package's public classes, without importing the package.

    Args:
        folder: Folder of the package, ``bishare`` or a part of ``bishare``.
        ending: End of the names.
    """
    for node in ast.walk(_parsed(folder / "__init__.py")):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        names = {alias.name for alias in node.names if alias.name.endswith(ending)}
        start = folder if node.level else PACKAGE.parent
        file = start.joinpath(*node.module.split(".")).with_suffix(".py")
        if names and file.is_file():
            yield from _classes(file, names)


def _classes(file: Path, names: Container[str]) -> Iterator[tuple[str, str]]:
    for definition in _parsed(file).body:
        if isinstance(definition, ast.ClassDef) and definition.name in names:
            yield definition.name, _first_sentence(ast.get_docstring(definition) or "")


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _first_sentence(docstring: str) -> str:
    return re.split(r"(?<=\.)\s", docstring, maxsplit=1)[0].replace("\n", " ")


def _entry(name: str, sentence: str) -> str:
    """Name and sentence in the layout of jsonargparse's options."""
    indent = " " * INDENT
    text = textwrap.fill(sentence, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return f"  {name}\n{text}"
