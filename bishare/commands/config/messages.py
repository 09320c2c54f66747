"""A single line for a wrong key or value, with the file that sets the key and the way out."""

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import yaml

from bishare.commands.config.parser_report import ParserReport, suggestion
from bishare.commands.config.trees import entries, files_of, load_or_none


def explain(message: str, arguments: Sequence[str], known_keys: Collection[str]) -> str:
    """Explain a parsing error in a line.

    Args:
        message: The message of jsonargparse.
        arguments: The command line after the command's name.
        known_keys: Every key of the command, dotted.
    """
    files: list[Path] = []
    for name in config_arguments(arguments):
        files += files_of(Path(name))
    return (
        _broken_file(message, files)
        or _wrong_argument(message, known_keys)
        or _missing_argument(message, files, known_keys)
        or _wrong_value(message, arguments, files, known_keys)
    )


def _broken_file(message: str, files: Sequence[Path]) -> str:
    """The line for a file that is no YAML; empty for other errors."""
    if not re.search(r"Problems parsing config|Invalid content in sub-config|while (parsing|scanning)", message):
        return ""
    return next(filter(None, map(_yaml_problem, files)), "")


def _wrong_argument(message: str, known_keys: Collection[str]) -> str:
    """The line for an argument of the command line that is no option or lacks a value; empty for other errors."""
    if option := re.match(r"unrecognized arguments: --([^ =]+)", message):
        return f"--{option[1]} is not known; {suggestion(option[1], known_keys, '--') or 'see --help.'}"
    if option := re.match(r"argument (--\S+): expected", message):
        return f"{option[1]} needs a value."
    if extra := re.match(r"unrecognized arguments: (\S+)", message):
        return f"{extra[1]} is one argument too many; options begin with --."
    return ""


def _missing_argument(message: str, files: Sequence[Path], known_keys: Collection[str]) -> str:
    """The line for required keys that are missing or misspelt; empty for other errors."""
    required = re.match(r"the following arguments are required: (.+)", message)
    if required is None:
        return ""
    names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in required[1].split(", ")]
    if line := _misspelt(names, files, known_keys):
        return line
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not given."


def _wrong_value(message: str, arguments: Sequence[str], files: Sequence[Path], known_keys: Collection[str]) -> str:
    """The line for a wrong key or value, after the file that sets the key."""
    report = ParserReport.read(message)
    if report.is_not_given and (misspelt := _misspelt([report.path], files, known_keys)):
        return misspelt
    line = report.line(known_keys)
    where = _where(report.path.rpartition(".")[2], arguments, files)
    return f"{where}: {line}" if where else line


def _misspelt(missing: Sequence[str], files: Sequence[Path], known_keys: Collection[str]) -> str:
    """The line for an unknown key in the place of a missing key: jsonargparse reports the missing key first."""
    for file in files:
        for key in missing:
            section, _, leaf = key.rpartition(".")
            wrong = difflib.get_close_matches(leaf, _unknown_keys(file, section, known_keys), n=1)
            if wrong:
                prefix = f"{section}." if section else ""
                return f"{file}: {prefix}{wrong[0]} is not known; did you mean {leaf}?"
    return ""


def _unknown_keys(file: Path, section: str, known_keys: Collection[str]) -> list[str]:
    """Keys of a section of a file that the command does not know.

    Args:
        file: A configuration file.
        section: Dotted name; empty for the whole file.
        known_keys: Every key of the command, dotted.
    """
    group = load_or_none(file)
    for name in filter(None, section.split(".")):
        group = group.get(name) if isinstance(group, dict) else None
    if not isinstance(group, dict):
        return []
    prefix = f"{section}." if section else ""
    return [key for key in map(str, group) if not _begins_known_key(f"{prefix}{key}", known_keys)]


def _begins_known_key(key: str, known_keys: Collection[str]) -> bool:
    return any(f"{known}.".startswith(f"{key}.") for known in known_keys)


def config_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """The files given with --config."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in ("--config", "-c"):
            yield argument
        elif argument.startswith("--config="):
            yield argument.removeprefix("--config=")


def _where(key: str, arguments: Sequence[str], files: Sequence[Path]) -> str:
    """The last file that sets a key; empty if the command line or no file sets the key."""
    if any(re.match(rf"--(.*\.)?{re.escape(key)}(=|\+?$)", argument) for argument in arguments):
        return ""
    for file in reversed(files):
        names = [name for name, _ in entries(load_or_none(file))]
        if key in names:
            return str(file)
    return ""


def _yaml_problem(file: Path) -> str:
    """The line for a file that is no YAML; empty for a file that is."""
    try:
        yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"{file}{line} is not valid YAML: {error.problem}."
    except (ValueError, yaml.YAMLError) as error:
        return f"{file} is not valid YAML: {error}."
    return ""
