"""Reads the tree of lines that jsonargparse reports for a wrong key or value, and writes a single line.

Parser key "model.adapter":
  Problem with given class_path 'bishare.BiShareConfig':     model.adapter.r_intr is not known;
    Option 'r_intr' is not accepted                          did you mean r_intra?
"""

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from bishare.commands.config.trees import names_part

PLAIN_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
"""Words for Python's types."""


@dataclass
class ParserReport:
    """Facts from a tree of lines, collected along the first branch: later members of a Union only add noise."""

    keys: list[str] = field(default_factory=list)
    """Dotted keys, from the outermost section inwards."""
    class_path: str = ""
    """Class whose arguments are wrong."""
    unknown: str = ""
    """Key without a meaning."""
    expected: list[str] = field(default_factory=list)
    """Types that the value may have."""
    given: str = ""
    part: str = ""
    """Name of a part file; the file is missing unless a later line says more."""
    other: list[str] = field(default_factory=list)
    """Lines of all further kinds, in plain words where known."""

    @classmethod
    def read(cls, message: str) -> "ParserReport":
        report = cls()
        for line in message.splitlines():
            text = line.strip()
            # A bullet begins the next member of a Union.
            if text.startswith("- ") and (report.unknown or report.other):
                break
            report._read_line(text.removeprefix("- "))
        return report

    def _read_line(self, text: str) -> None:
        if match := re.match(r'Parser key "(.+?)":\s*(.*)', text):
            self._add_key(match[1])
            text = match[2]
        if match := re.match(r"Problem with given class_path '(.+)':", text):
            self.class_path = match[1]
        elif match := re.search(r"(?:Option|does not accept option) '(.+?)'", text):
            self.unknown = match[1]
        elif match := re.match(r"Expected a path but (.*) either not accessible or invalid", text):
            if names_part(match[1]):  # else the value names a class, and later lines say more
                self.other.append(_no_file(match[1]))
        elif match := re.match(r"File does not exist: '(.*)'", text):
            self.other.append(f"there is no file {match[1]}")
        elif match := re.match(r"Unable to load config ['\"](.*)['\"]$", text):
            self.part = match[1]
        elif match := re.match(r"the following arguments are required: (.+)", text):
            self.other.append(f"{self.class_path.rpartition('.')[2]} needs {match[1]}")
        elif match := re.match(r"Expected an? (.+?)(?:\. Got value: (.*))?$", text):
            self.expected.append(match[1])
            self.given = self.given or match[2] or ""
        elif match := re.match(r"Given value: (.*)", text):
            self.given = self.given or match[1]
        elif text and not re.match(r"Does not validate against|Subtypes:|Errors:|Given value type:", text):
            self.other.append(text)

    def _add_key(self, key: str) -> None:
        # An inner key that repeats the outer one replaces the outer one.
        if self.keys and f"{key}.".startswith(f"{self.keys[-1]}."):
            self.keys.pop()
        self.keys.append(key)

    @property
    def path(self) -> str:
        """Dotted key of the wrong value."""
        keys = list(self.keys)
        if self.unknown:
            keys.append(self.unknown)
        # The callbacks are a list, in which the class tells the members apart.
        if len(keys) > 1 and keys[0].endswith("callbacks"):
            keys.insert(1, self.class_path.rpartition(".")[2])
        return ".".join(keys)

    @property
    def is_not_given(self) -> bool:
        """Whether the value is missing, and nothing else is wrong."""
        names_another_problem = self.unknown or self.other or (self.part and not self.expected)
        return not names_another_problem and self.given in ("", "None")

    def line(self, known_keys: Collection[str]) -> str:
        """The report as a line: the key, the problem, the way out.

        Args:
            known_keys: Every key of the command, dotted.
        """
        if self.unknown:
            candidates = _parameters(self.class_path) if self.class_path else known_keys
            return f"{self.path} is not known; {suggestion(self.unknown, candidates) or 'see --help.'}"
        if self.other:
            return f"{self.path}: {_plain(self.other[0])}".removeprefix(": ")
        if self.part and not self.expected:
            return f"{self.path}: {_no_file(self.part)}."
        if self.is_not_given:
            return f"{self.path} is not given."
        return f"{self.path} is {self.given}; it must be {_alternatives(self.expected)}."


def suggestion(wrong: str, known: Collection[str], prefix: str = "") -> str:
    """A question for the nearest known key; empty without a near key.

    Args:
        wrong: The unknown key, dotted.
        known: Known keys, dotted.
        prefix: Put before the suggested key, as ``--``. Without a prefix the common section is left out.
    """
    parent, _, leaf = wrong.rpartition(".")
    # The right key in the wrong section is nearer than any similar spelling.
    same_leaf = [key for key in known if key.rpartition(".")[2] == leaf]
    close = same_leaf or difflib.get_close_matches(wrong, list(known), n=1)
    if not close:
        return ""
    near = close[0].removeprefix(f"{parent}.") if parent and not prefix else prefix + close[0]
    return f"did you mean {near}?"


def _plain(text: str) -> str:
    """Python's sentence about a missing class in plain words; any other sentence with a full stop."""
    if match := re.match(r"module '(.+)' has no attribute '(.+)'", text):
        names = [name for name in dir(importlib.import_module(match[1])) if not name.startswith("_")]
        return f"there is no {match[1]}.{match[2]}; {suggestion(match[2], names) or 'check the name.'}"
    if match := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return f"{match[1]} is no {match[2]}."
    return text if text.endswith(".") else f"{text}."


def _no_file(name: str) -> str:
    return f"there is no file {name} (paths are relative to the file that names them)"


def _parameters(class_path: str) -> list[str]:
    """Parameters of a class and of its bases, to which keywords may be passed on."""
    module, _, name = class_path.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    names: list[str] = []
    for base in inspect.getmro(found)[:-1]:
        names += inspect.signature(base).parameters
    return names


def _alternatives(expected: Sequence[str]) -> str:
    """``slice, gate or kronecker`` for a list of types as jsonargparse writes them."""
    words: dict[str, None] = {}  # in order, each once
    for kind in expected:
        if match := re.match(r"typing\.Literal(\[.*\])", kind):
            words |= dict.fromkeys(map(str, ast.literal_eval(match[1])))
        else:
            name = re.sub(r"<class '(.+)'>", r"\1", kind)
            words[PLAIN_TYPES.get(name, name)] = None
    if not words:
        return "something else"
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
