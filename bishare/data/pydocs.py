"""Instructions without a download: the documentation of the running Python's standard library.

A question is "What does `textwrap.dedent` do?", its answer the beginning of the docstring.
"""

import ast
import importlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bishare.data.prompt_data import PromptData
from bishare.data.rows import AnyRow, Row

ANSWER_CHARACTERS = 600
"""A paragraph that would pass this length ends the answer; the first paragraph is kept whole."""
MIN_ANSWER_CHARACTERS = 20
"""A shorter docstring gives no row."""

LEFT_OUT = frozenset({"ensurepip", "idlelib", "lib2to3", "test", "tests", "turtledemo"})
"""Folders with programs and tests rather than a library."""

COMPILED = (
    *("array", "binascii", "builtins", "bz2", "cmath", "collections", "datetime", "decimal", "errno", "functools"),
    *("gc", "hashlib", "io", "itertools", "lzma", "marshal", "math", "mmap", "operator", "os", "pickle", "random"),
    *("re", "select", "signal", "socket", "sqlite3", "ssl", "statistics", "struct", "sys", "threading", "time"),
    *("types", "unicodedata", "weakref", "zlib"),
)
"""Modules with members written in C, without a Python source; importing these modules has no side effect."""


@dataclass(kw_only=True, eq=False)
class PyDocsData(PromptData):
    """Questions about the functions and classes of Python's standard library."""

    def read(self) -> list[AnyRow]:
        """One row for each documented function, class, and method of a compiled class, in alphabetical order."""
        return list(python_docs())


def python_docs() -> list[Row]:
    """Question and answer for everything documented; a docstring with several names is taken once."""
    documented = dict(_from_sources())
    # A Python source comes before a compiled module of the same name.
    for name, text in _from_compiled():
        documented.setdefault(name, text)
    by_answer: dict[str, str] = {}
    for name in sorted(documented):
        answer = _beginning(documented[name])
        if len(answer) >= MIN_ANSWER_CHARACTERS:
            by_answer.setdefault(answer, name)
    return [Row(f"What does `{name}` do?", "", answer) for answer, name in by_answer.items()]


def _beginning(text: str) -> str:
    """The first paragraphs of a docstring, at least one."""
    kept = ""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if kept and len(kept) + len(paragraph) > ANSWER_CHARACTERS:
            break
        kept = f"{kept}\n\n{paragraph}" if kept else paragraph
    return kept.strip()


def _from_sources() -> Iterator[tuple[str, str]]:
    """Names and docstrings from the library's Python files, read but not run."""
    library = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names):
        yield from _from_source(library / f"{module}.py", module)
        for path in sorted((library / module).rglob("*.py")):
            parts = path.relative_to(library).with_suffix("").parts
            if parts[-1] == "__init__":  # a package has the name of its folder
                parts = parts[:-1]
            yield from _from_source(path, *parts)


def _from_source(path: Path, *parts: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of the public functions and classes of a module, given by the parts of its name."""
    if LEFT_OUT & set(parts) or _private(*parts) or not path.is_file():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, for example about old escapes
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # a template, or a file for another version of Python
            return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not _private(node.name):
            text = ast.get_docstring(node)
            if text:
                yield ".".join((*parts, node.name)), text


def _from_compiled() -> Iterator[tuple[str, str]]:
    """Names and docstrings of functions, classes and methods written in C."""
    for module in COMPILED:
        try:
            members = vars(importlib.import_module(module))
        except ImportError:  # not every Python is built with all of these modules
            continue
        prefix = "" if module == "builtins" else f"{module}."
        for name, member in members.items():
            if _private(name) or not (inspect.isbuiltin(member) or isinstance(member, type)):
                continue
            if text := inspect.getdoc(member):
                yield f"{prefix}{name}", text
            if isinstance(member, type):
                yield from _from_methods(f"{prefix}{name}", member)


def _from_methods(name: str, member: type) -> Iterator[tuple[str, str]]:
    for method, function in vars(member).items():
        # ``__doc__`` rather than ``getdoc``, which would give an undocumented method the text of a base class.
        if not _private(method) and inspect.ismethoddescriptor(function) and (text := function.__doc__):
            yield f"{name}.{method}", text


def _private(*names: str) -> bool:
    return any(name.startswith("_") for name in names)
