"""Counts that tell how tiring the source is to read, for each file and for the tree.

Run ``python tests/house/prose.py [--where] [PATHS]``; ``--where`` lists the lines to change.
"""

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REFERRING = {
    *("it", "that", "those", "one", "which", "other", "such"),
    # Other forms of the seven words, and the pronouns that would replace them.
    *("its", "ones", "others", "another", "this", "these", "they", "them", "their", "what", "whose"),
}
"""Words that send a reader back to an earlier word."""

LONGEST_TEST_NAME = 8
"""Words of a test's name, without ``test``."""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT),
    *(tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER),
}


@dataclass(kw_only=True)
class Counts:
    """Counts of one file or of several together."""

    code_lines: int = 0
    """Lines that hold code: neither empty nor docstring nor comment alone."""
    comment_lines: int = 0
    docstring_words: int = 0
    referring_words: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    """Comprehensions with two ``for`` or with a comprehension inside."""
    conditional_expressions: int = 0
    test_name_lengths: list[int] = field(default_factory=list)
    """Words of each test's name, without ``test``."""

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def referring_percent(self) -> float:
        return 100 * self.referring_words / max(self.docstring_words, 1)

    @property
    def nested_per_thousand(self) -> float:
        return 1000 * self.nested_comprehensions / max(self.code_lines, 1)

    @property
    def comments_per_hundred(self) -> float:
        return 100 * self.comment_lines / max(self.code_lines, 1)

    @property
    def mean_test_name(self) -> float:
        return sum(self.test_name_lengths) / max(len(self.test_name_lengths), 1)

    @property
    def num_long_test_names(self) -> int:
        return sum(length > LONGEST_TEST_NAME for length in self.test_name_lengths)


def counts_of(text: str) -> Counts:
    """Counts of one file's text."""
    docstrings = list(docstrings_of(text))
    counts = Counts()
    for docstring in docstrings:
        words = words_of(docstring.value)
        counts.docstring_words += len(words)
        counts.referring_words += sum(word in REFERRING for word in words)
    for node in ast.walk(ast.parse(text)):
        counts.comprehensions += isinstance(node, COMPREHENSIONS)
        counts.nested_comprehensions += is_nested(node)
        counts.conditional_expressions += isinstance(node, ast.IfExp)
    counts.test_name_lengths += [test_name_length(test.name) for test in tests_of(text)]
    counts.code_lines, counts.comment_lines = lines_of(text)
    counts.code_lines -= sum(docstring.end_lineno - docstring.lineno + 1 for docstring in docstrings)
    return counts


def docstrings_of(text: str) -> Iterator[ast.Constant]:
    """Every string that stands as a statement: docstrings, also those under a field."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def is_nested(node: ast.AST) -> bool:
    """Whether ``node`` is a comprehension with two ``for`` or with a comprehension inside."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = sum(isinstance(part, COMPREHENSIONS) for part in ast.walk(node)) - 1
    return len(node.generators) > 1 or inner > 0


def tests_of(text: str) -> list[ast.FunctionDef]:
    """Tests of a file: functions of the file and of its ``Test`` classes, since elsewhere ``test_step`` is a hook."""
    body = ast.parse(text).body
    nodes: list[ast.stmt] = list(body)
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            nodes += node.body
    return [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_name_length(name: str) -> int:
    return len(name.strip("_").split("_")) - 1


def lines_of(text: str) -> tuple[int, int]:
    """Lines of code (docstrings among them) and lines that carry a comment."""
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code), len(comments)


def places_of(text: str) -> list[tuple[int, str]]:
    """Lines to change, with the reason."""
    places = []
    for docstring in docstrings_of(text):
        for offset, line in enumerate(docstring.value.splitlines()):
            found = [word for word in words_of(line) if word in REFERRING]
            if found:
                places.append((docstring.lineno + offset, f"refers back: {', '.join(found)}"))
    for node in ast.walk(ast.parse(text)):
        if is_nested(node):
            places.append((node.lineno, "nested comprehension"))
    for test in tests_of(text):
        if test_name_length(test.name) > LONGEST_TEST_NAME:
            places.append((test.lineno, f"a test name of {test_name_length(test.name)} words"))
    return sorted(places)


def python_files(paths: Sequence[Path]) -> list[Path]:
    """Python files of files and folders, in order."""
    files: list[Path] = []
    for path in paths:
        files += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return files


def total(files: Sequence[Path]) -> Counts:
    """Counts of several files together."""
    counts = Counts()
    for file in files:
        counts.add(counts_of(file.read_text(encoding="utf-8")))
    return counts


def row(name: str, counts: Counts) -> str:
    return (
        f"{counts.docstring_words:6d} {counts.referring_percent:6.1f} "
        f"{counts.nested_comprehensions:4d} {counts.nested_per_thousand:6.1f} "
        f"{counts.comprehensions:5d} {counts.conditional_expressions:5d} {counts.comments_per_hundred:6.1f} "
        f"{len(counts.test_name_lengths):5d} {counts.num_long_test_names:5d} {counts.mean_test_name:5.1f}  {name}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", action="store_true", help="list the lines to change")
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("bishare"), Path("callbacks"), Path("tests")])
    options = parser.parse_args()
    files = python_files(options.paths)
    if options.where:
        for file in files:
            for line, reason in places_of(file.read_text(encoding="utf-8")):
                print(f"{file}:{line}: {reason}")
    print("docstring words, referring %; nested comprehensions, per 1,000 lines; comprehensions, conditional")
    print("expressions, comments per 100 lines; tests, names over eight words, mean words of a name")
    for file in files:
        print(row(str(file), total([file])))
    print(row("together", total(files)))


if __name__ == "__main__":
    main()
