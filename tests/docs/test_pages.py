"""README, CONTRIBUTING and the pages of docs name only what is there, and every configuration is named."""

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bishare.cli import COMMANDS
from tests.house.prose import REFERRING, words_of
from tests.places import CONFIGS, PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(PROJECT.glob("docs/*.md")),
]
TEXTS = {str(page.relative_to(PROJECT)): page.read_text(encoding="utf-8") for page in PAGES}
FOLDERS = "benchmarks|bishare|callbacks|configs|docs|notebooks|tests"
CONFIGURATIONS = sorted(path for path in CONFIGS.rglob("*") if path.is_file())


def named(pattern: str) -> list[str]:
    """Every text on a page that the pattern captures, once."""
    found: set[str] = set()
    for text in TEXTS.values():
        found.update(re.findall(pattern, text))
    assert found, f"no page has anything like {pattern}"
    return sorted(found)


@pytest.mark.parametrize("path", named(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w"))
def test_every_path_exists(path: str) -> None:
    assert "NAME" in path or (PROJECT / path).exists()  # a name that the reader chooses


@pytest.mark.parametrize("command", named(r"-m bishare ([a-z]\w*)"))
def test_every_command_exists(command: str) -> None:
    assert command in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_lists_every_command(command: str) -> None:
    section = TEXTS["README.md"].partition("\n## Commands\n")[2].partition("\n## ")[0]
    assert f"`{command}`" in section


@pytest.mark.parametrize("target", named(r"(?m)(?:^|`)make (\w+)"))
def test_every_target_of_make_exists(target: str) -> None:
    assert re.search(rf"(?m)^{target}:", (PROJECT / "Makefile").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", named(r"\b((?:callbacks|bishare(?:\.data|\.deepspeed)?)\.[A-Za-z]\w+)\b(?!/|\.\w)"))
def test_every_name_can_be_imported(name: str) -> None:
    assert name.endswith(".NAME") or pkgutil.resolve_name(name)  # a name that the reader chooses


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_some_page_names_the_configuration(path: Path) -> None:
    assert any(re.search(rf"\b{re.escape(path.name)}\b", text) for text in TEXTS.values())


def links() -> Iterator[tuple[str, str]]:
    """Page and target of every link inside the project."""
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not target.startswith("https://"):
                yield page, target


@pytest.mark.parametrize(("page", "target"), links())
def test_every_link_leads_somewhere(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    goal = (PROJECT / page).parent / path if path else PROJECT / page
    assert goal.is_file()
    if anchor:
        assert anchor in anchors(goal.read_text(encoding="utf-8"))


def anchors(text: str) -> list[str]:
    """Anchors that a page gets from its headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", TEXTS)
def test_few_words_of_a_page_refer_back(page: str) -> None:
    prose = re.sub(r"(?s)```.*?```|`[^`]*`", "", TEXTS[page])
    words = words_of(prose)
    assert 100 * sum(word in REFERRING for word in words) / len(words) <= 5.0
