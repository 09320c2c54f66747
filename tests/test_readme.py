"""What the README names is there: files, commands, targets of make, and names to import."""

import pkgutil
import re

import pytest

from bishare.cli import COMMANDS
from tests.places import PROJECT

TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")
FOLDERS = "benchmarks|bishare|callbacks|configs|docs|notebooks|tests"


def named(pattern: str) -> list[str]:
    found = sorted(set(re.findall(pattern, TEXT)))
    assert found, f"the README has nothing like {pattern} any more"
    return found


@pytest.mark.parametrize("path", named(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w"))
def test_every_file_is_there(path: str) -> None:
    assert (PROJECT / path).exists()


@pytest.mark.parametrize("command", named(r"-m bishare (\w+)"))
def test_every_command_is_one(command: str) -> None:
    assert command in COMMANDS


@pytest.mark.parametrize("target", named(r"(?m)(?:^|`)make (\w+)"))
def test_every_target_of_make_is_one(target: str) -> None:
    assert re.search(rf"(?m)^{target}:", (PROJECT / "Makefile").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", named(r"\b((?:callbacks|bishare(?:\.data)?)\.[A-Za-z]\w*)\b"))
def test_every_name_can_be_imported(name: str) -> None:
    assert pkgutil.resolve_name(name)
