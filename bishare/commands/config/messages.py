"""One line for a wrong key or value of a configuration, made of the tree of lines that jsonargparse reports.

Parser key "model.adapter":
  Problem with given class_path 'bishare.BiShareConfig':     configs/x.yaml: model.adapter.r_intr is not
    Option 'r_intr' is not accepted                          known; did you mean r_intra?
"""

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bishare.commands.config.trees import entries, files_of, load_or_none


def explain(message: str, arguments: Sequence[str], known_keys: Collection[str]) -> str:
    """The one line for a parsing error.

    Args:
        message: What jsonargparse says.
        arguments: The command line after the command's name.
        known_keys: Every key that the command knows, dotted.
    """
    files = [file for name in _config_arguments(arguments) for file in files_of(Path(name))]
    if re.search(r"Problems parsing config|Invalid content in sub-config|while (parsing|scanning)", message):
        for file in files:
            if problem := _yaml_problem(file):
                return problem
    if option := re.match(r"unrecognized arguments: --([^ =]+)", message):
        return f"--{option[1]} is not known; {_suggestion(option[1], known_keys, '--') or 'see --help.'}"
    if option := re.match(r"argument (--\S+): expected", message):
        return f"{option[1]} needs a value."
    if required := re.match(r"the following arguments are required: (.+)", message):
        names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in required[1].split(", ")]
        if line := _misspelt(names, files, known_keys):
            return line
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not given."
    if extra := re.match(r"unrecognized arguments: (\S+)", message):
        return f"{extra[1]} is one argument too many; options begin with --."
    report = _Report.read(message)
    if report.is_not_given and (misspelt := _misspelt([report.path], files, known_keys)):
        return misspelt
    line = report.line(known_keys)
    where = _where(report.path.rpartition(".")[2], arguments, files)
    return f"{where}: {line}" if where else line


@dataclass
class _Report:
    """What a tree of lines says, read along its first branch: the other members of a Union only add noise."""

    keys: list[str] = field(default_factory=list)
    class_path: str = ""
    unknown: str = ""
    expected: list[str] = field(default_factory=list)
    given: str = ""
    part: str = ""
    """A file that was to be loaded: what follows says what is wrong in it, or nothing does and it is not there."""
    other: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, message: str) -> "_Report":
        report = cls()
        for line in message.splitlines():
            text = line.strip()
            if text.startswith("- ") and (report.unknown or report.other):
                break
            report._read_line(text.removeprefix("- "))
        return report

    def _read_line(self, text: str) -> None:
        if match := re.match(r'Parser key "(.+?)":\s*(.*)', text):
            if self.keys and f"{match[1]}.".startswith(f"{self.keys[-1]}."):
                self.keys.pop()  # the longer one says it all
            self.keys.append(match[1])
            text = match[2]
        if match := re.match(r"Problem with given class_path '(.+)':", text):
            self.class_path = match[1]
        elif match := re.search(r"(?:Option|does not accept option) '(.+?)'", text):
            self.unknown = match[1]
        elif match := re.match(r"Expected a path but (.*) either not accessible or invalid", text):
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

    @property
    def path(self) -> str:
        """Dotted key of the value that is wrong."""
        keys = [*self.keys, self.unknown] if self.unknown else [*self.keys]
        if len(keys) > 1 and keys[0].endswith("callbacks"):  # a list: say which of them
            keys.insert(1, self.class_path.rpartition(".")[2])
        return ".".join(keys)

    @property
    def is_not_given(self) -> bool:
        names_another_problem = self.unknown or self.other or (self.part and not self.expected)
        return not names_another_problem and self.given in ("", "None")

    def line(self, known_keys: Collection[str]) -> str:
        if self.unknown:
            candidates = _parameters(self.class_path) if self.class_path else known_keys
            return f"{self.path} is not known; {_suggestion(self.unknown, candidates) or 'see --help.'}"
        if self.other:
            return f"{self.path}: {self._plain(self.other[0])}".removeprefix(": ")
        if self.part and not self.expected:
            return f"{self.path}: {_no_file(self.part)}."
        if self.is_not_given:
            return f"{self.path} is not given."
        return f"{self.path} is {self.given}; it must be {_alternatives(self.expected)}."

    def _plain(self, text: str) -> str:
        """Python's words for a class that is not there, in ours."""
        if match := re.match(r"module '(.+)' has no attribute '(.+)'", text):
            names = [name for name in dir(importlib.import_module(match[1])) if not name.startswith("_")]
            return f"there is no {match[1]}.{match[2]}; {_suggestion(match[2], names) or 'check the name.'}"
        if match := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
            return f"{match[1]} is no {match[2]}."
        return text if text.endswith(".") else f"{text}."


def _no_file(name: str) -> str:
    return f"there is no file {name} (paths are relative to the file that names them)"


def _parameters(class_path: str) -> list[str]:
    """Names that the class takes, those of its bases included where it passes keywords on."""
    module, _, name = class_path.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    return [name for base in inspect.getmro(found)[:-1] for name in inspect.signature(base).parameters]


def _misspelt(missing: Sequence[str], files: Sequence[Path], known_keys: Collection[str]) -> str:
    """The line for an unknown key in the place of a missing one: jsonargparse tells of the missing key first."""
    for file in files:
        for parent, _, leaf in (key.rpartition(".") for key in missing):
            group = load_or_none(file)
            for name in filter(None, parent.split(".")):
                group = group.get(name) if isinstance(group, dict) else None
            prefix = f"{parent}." if parent else ""
            keys = map(str, group) if isinstance(group, dict) else ()
            unknown = [key for key in keys if not any(f"{k}.".startswith(f"{prefix}{key}.") for k in known_keys)]
            if wrong := difflib.get_close_matches(leaf, unknown, n=1):
                return f"{file}: {prefix}{wrong[0]} is not known; did you mean {leaf}?"
    return ""


def _suggestion(wrong: str, known: Collection[str], prefix: str = "") -> str:
    parent, _, leaf = wrong.rpartition(".")
    same_leaf = [key for key in known if key.rpartition(".")[2] == leaf]
    close = same_leaf or difflib.get_close_matches(wrong, list(known), n=1)
    if not close:
        return ""
    near = close[0].removeprefix(f"{parent}.") if parent and not prefix else prefix + close[0]
    return f"did you mean {near}?"


def _alternatives(expected: Sequence[str]) -> str:
    """``slice, gate or kronecker`` for a list of types as jsonargparse writes them."""
    words: list[str] = []
    plain = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
    for kind in expected:
        if match := re.match(r"typing\.Literal(\[.*\])", kind):
            words += [str(choice) for choice in ast.literal_eval(match[1])]
        else:
            name = re.sub(r"<class '(.+)'>", r"\1", kind)
            words.append(plain.get(name, name))
    words = list(dict.fromkeys(words))
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "something else"


def _config_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """The files given with --config."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in ("--config", "-c"):
            yield argument
        elif argument.startswith("--config="):
            yield argument.removeprefix("--config=")


def _where(key: str, arguments: Sequence[str], files: Sequence[Path]) -> str:
    """The file that sets this key; nothing if the command line does, or nobody."""
    if any(re.match(rf"--(.*\.)?{re.escape(key)}(=|\+?$)", argument) for argument in arguments):
        return ""
    return next(
        (str(file) for file in reversed(files) if any(key == name for name, _ in entries(load_or_none(file)))), ""
    )


def _yaml_problem(file: Path) -> str:
    try:
        yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"{file}{line} is not valid YAML: {error.problem}."
    except (ValueError, yaml.YAMLError) as error:
        return f"{file} is not valid YAML: {error}."
    return ""
