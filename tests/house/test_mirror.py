"""Every source has its mirror test: ``bishare/a/b.py`` has ``tests/a/test_b.py``."""

import ast
from pathlib import Path

import pytest

from tests.house import prose
from tests.places import PROJECT

SOURCES = [file.relative_to(PROJECT) for file in prose.python_files([PROJECT / "bishare", PROJECT / "callbacks"])]

COVERED_BY = {
    "bishare/__init__.py": "tests/test_from_python.py",
    "bishare/callbacks.py": "tests/test_callback_names.py",
    "bishare/data/__init__.py": "tests/commands/fit/test_command.py",
    "bishare/deepspeed.py": "tests/training/test_compatibility.py",
    "bishare/version.py": "tests/test_package.py",
    "callbacks/__init__.py": "tests/test_configs.py",
}
"""The test of each source without a mirror; the test names the source's module."""


def mirror_of(source: Path) -> Path:
    """Path of the mirror test; ``callbacks`` keeps its folder and ``__main__`` loses its underscores."""
    folders = source.parent.parts[1:] if source.parts[0] == "bishare" else source.parent.parts
    return Path("tests", *folders, f"test_{source.stem.strip('_')}.py")


def module_of(source: Path) -> str:
    parts = source.with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_docstring_alone(source: Path) -> bool:
    body = ast.parse((PROJECT / source).read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) for node in body)


def holds_tests(test: Path) -> bool:
    file = PROJECT / test
    return file.is_file() and bool(prose.tests_of(file.read_text(encoding="utf-8")))


def test_every_source_has_its_test() -> None:
    missing = []
    for source in SOURCES:
        covered = str(source) in COVERED_BY or is_docstring_alone(source) or holds_tests(mirror_of(source))
        if not covered:
            missing.append(f"{source} has no {mirror_of(source)}")
    assert not missing


@pytest.mark.parametrize("source", COVERED_BY)
def test_covering_test_names_the_module(source: str) -> None:
    test = Path(COVERED_BY[source])
    assert Path(source) in SOURCES
    assert holds_tests(test)
    assert module_of(Path(source)) in (PROJECT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("source", COVERED_BY)
def test_covered_source_has_no_mirror(source: str) -> None:
    assert not holds_tests(mirror_of(Path(source)))
