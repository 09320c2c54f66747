"""``configs``: lists the shipped configurations and parts, and copies a file for changes."""

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from bishare.commands.config.shipped_files import FOLDER, find_shipped, nearest, shipped_names
from bishare.commands.config.trees import files_of
from bishare.errors import UserError
from bishare.files import write_bytes
from bishare.shipped import shipped_folder


def run(command: str, arguments: Sequence[str]) -> None:
    """List the shipped files, or copy a file.

    Raises:
        UserError: No shipped file has the name, or the copy would replace a file.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bishare {command}",
        description="List the configurations and parts that come with bishare, or copy a file with all its parts. No "
        "file is replaced.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="The file to copy, by its name in the list.")
    parser.add_argument("--out", type=Path, default=Path(FOLDER), help=f"The folder to copy to ({FOLDER}).")
    given = parser.parse_args(list(arguments))
    if given.name is None:
        print("\n\n".join(listing()))
    else:
        copy(given.name, given.out)


def listing() -> Iterator[str]:
    """Names with the first sentence of each file: runnable files by command, then parts by folder."""
    names = shipped_names()
    width = max(map(len, names))
    groups: dict[str, list[str]] = {}
    for name, file in names.items():
        line = f"  {name:<{width}}  {opening(file)}"
        groups.setdefault(_heading(name, file), []).append(line)
    for heading in sorted(groups, key=lambda heading: heading.startswith("parts")):
        yield "\n".join([heading, *groups[heading]])
    yield f"`python -m bishare configs NAME` copies a file and its parts to {FOLDER}/, to be changed."


def opening(file: Path) -> str:
    """The first sentence of a file; for an architecture, the base."""
    if file.suffix == ".json":
        return f"architecture of {file.stem.replace('--', '/')}"
    return file.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def copy(name: str, out: Path) -> None:
    """Copy a shipped file and all its parts below ``out``, in the same folders; existing parts stay.

    Raises:
        UserError: No shipped file has the name, or ``out`` has the file already.
    """
    source = find_shipped(name)
    if source is None:
        raise UserError(f"no shipped file is called {name}; {nearest(name)}")
    copied: set[Path] = set()
    for file in map(Path.resolve, files_of(source)):
        target = out / file.relative_to(shipped_folder(FOLDER))
        if target in copied:
            continue  # two files may share a part
        copied.add(target)
        if target.exists() and len(copied) == 1:
            raise UserError(f"{target} is there already and stays as it is; choose another folder with --out.")
        if target.exists():
            print(f"kept    {target}")
        else:
            write_bytes(target, file.read_bytes())
            print(f"written {target}")
    if usage := _usage(source):
        here = shlex.quote(str(out / source.relative_to(shipped_folder(FOLDER))))
        print(f"run it  {re.sub(r'(?<=--config )[^ ]+', lambda _: here, usage)}")


def _heading(name: str, file: Path) -> str:
    """The command that runs a file, or the folder of a part."""
    if command := re.match(r"python -m bishare \w+ --config ", _usage(file)):
        return f"{command[0]}NAME"
    return f"parts, {FOLDER}/{Path(name).parent}"


def _usage(file: Path) -> str:
    """The command in the opening of a file; empty for parts."""
    command = re.search(r"^#   (python -m bishare .+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return command[1] if command else ""
