"""Bounds on how tiring the source is to read; ``tests/house/prose.py --where`` lists the lines to change."""

import ast

import pytest

from tests.house import prose
from tests.places import PROJECT

SOURCES = prose.python_files([PROJECT / "bishare", PROJECT / "callbacks"])
TESTS = prose.python_files([PROJECT / "tests"])

MOST_LINES = 300


@pytest.fixture(scope="module")
def sources() -> prose.Counts:
    return prose.total(SOURCES)


def test_few_words_of_docstrings_refer_back(sources: prose.Counts) -> None:
    assert sources.referring_percent <= 5.0


def test_few_comprehensions_are_nested(sources: prose.Counts) -> None:
    assert sources.nested_per_thousand <= 2.7


def test_names_of_tests_are_short() -> None:
    counts = prose.total(TESTS)
    assert counts.num_long_test_names == 0
    assert counts.mean_test_name <= 6.0


def test_long_files_say_why() -> None:
    long_files = []
    for file in [*SOURCES, *TESTS, *prose.python_files([PROJECT / "benchmarks"])]:
        text = file.read_text(encoding="utf-8")
        opening = ast.get_docstring(ast.parse(text)) or ""
        if len(text.splitlines()) > MOST_LINES and "long because" not in opening.lower():
            long_files.append(str(file.relative_to(PROJECT)))
    assert not long_files, f"over {MOST_LINES} lines, and no `long because` in the opening docstring"


EXAMPLE = '''
"""Which one is it?"""

# A comment.
PAIRS = [(a, b) for a in range(3) for b in range(3)]  # and a second
ROWS = [[0 for _ in range(3)] for _ in range(3)]
FLAT = [0 if a else 1 for a in range(3)]


def test_that_holds() -> None:
    """Plain words."""


class Module:
    def test_step(self) -> None: ...
'''


def test_counts_of_an_example() -> None:
    assert prose.counts_of(EXAMPLE) == prose.Counts(
        code_lines=6,
        comment_lines=2,
        docstring_words=6,
        referring_words=3,
        comprehensions=4,
        nested_comprehensions=2,
        conditional_expressions=1,
        test_name_lengths=[2],
    )


def test_places_name_line_and_reason() -> None:
    assert prose.places_of(EXAMPLE) == [
        (2, "refers back: which, one, it"),
        (5, "nested comprehension"),
        (6, "nested comprehension"),
    ]
