"""Finds the configuration files of a command line: in the working folder, or else among the shipped files.

``--config llama7b``, ``--config llama7b.yaml`` and ``--config configs/llama7b.yaml`` name the same shipped file. For
``compare`` the folder of ``configs/compare`` may be left out.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bishare.commands.config.trees import PART_ENDINGS
from bishare.errors import UserError
from bishare.shipped import shipped_folder

FOLDER = "configs"
OPTIONS = ("--config", "-c", "--over")
"""Options whose values are configuration files."""


def with_shipped(command: str, arguments: Sequence[str]) -> list[str]:
    """Replace the names of shipped files among a command's arguments by paths; files of the working folder win.

    Raises:
        UserError: A file is in neither place.
    """
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if before in OPTIONS:
            found.append(_locate(argument, command, before))
        elif option in OPTIONS and equals:
            found.append(f"{option}={_locate(value, command, option)}")
        else:
            found.append(argument)
    return found


def find_shipped(name: str, folder: str = "") -> Path | None:
    """The shipped file of a name; None for an unknown name.

    Args:
        name: ``llama7b``, ``adapter/lora.yaml`` or ``configs/compare/ranks.yaml``, for example.
        folder: A folder below ``configs/`` that may be left out of the name.
    """
    root = shipped_folder(FOLDER)
    for path in _spellings(name.removeprefix(f"{FOLDER}/"), folder):
        file = root / path
        if file.is_file() and root in file.resolve().parents:  # a name cannot lead out of the folder
            return file
    return None


def shipped_names() -> dict[str, Path]:
    """Every shipped file by name: the path below ``configs/``, without the ending of YAML."""
    root = shipped_folder(FOLDER)
    names = {}
    for file in sorted([*root.rglob("*.yaml"), *root.rglob("*.json")]):
        names[file.relative_to(root).as_posix().removesuffix(".yaml")] = file
    return names


def nearest(name: str, folder: str | None = None) -> str:
    """Advice for an unknown name: similar names, and the command that lists all.

    Args:
        name: The name as written by the user.
        folder: Folder below ``configs/`` to which the similar names are limited; None for all folders.
    """
    by_stem: dict[str, list[str]] = {}
    for shipped, file in shipped_names().items():
        if folder is None or file.parent == shipped_folder(FOLDER) / folder:
            by_stem.setdefault(file.stem, []).append(shipped)
    near: list[str] = []
    for stem in difflib.get_close_matches(Path(name).stem, by_stem, n=3):
        near += by_stem[stem]
    listed = "`python -m bishare configs` lists the shipped files"
    return f"did you mean {' or '.join(near)}? {listed}." if near else f"{listed}."


def _locate(name: str, command: str, option: str) -> str:
    """Path of the file in an option's value.

    Raises:
        UserError: The file is neither in the working folder nor shipped.
    """
    # Settings in place of a file are left to the command.
    if name in ("", "-") or "\n" in name or "{" in name or ": " in name:
        return name
    if Path(name).expanduser().is_file():
        return name
    folder = _folder(command, option)
    for path in _spellings(name, folder):
        for parent in (Path(), Path(FOLDER)):  # `configs NAME` copies to the second
            if (parent / path).is_file():
                return str(parent / path)
    if (file := find_shipped(name, folder)) is not None:
        return str(file)
    raise UserError(f"{option}: there is no file {name}; {nearest(name, folder)}")


def _folder(command: str, option: str) -> str:
    """Folder below ``configs/`` with the files of an option."""
    if option == "--over":
        return "compare/over"
    return "compare" if command == "compare" else ""


def _spellings(name: str, folder: str) -> Iterator[Path]:
    """Possible files of a name, relative to a folder of configurations."""
    file = Path(name if name.endswith(PART_ENDINGS) else f"{name}.yaml")
    if folder:
        yield folder / file
    yield file
