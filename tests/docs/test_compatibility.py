"""The page on what goes together says what the rules say."""

import runpy

from bishare.training.compatibility import RULES
from tests.places import PROJECT

SCRIPT = PROJECT / "docs" / "compatibility.py"


def test_the_page_says_what_the_rules_say() -> None:
    made = runpy.run_path(str(SCRIPT))
    page = made["page"]()

    assert SCRIPT.with_suffix(".md").read_text(encoding="utf-8") == page, "run `make docs`"
    for rule in RULES:
        assert rule.message.format(**made["WORDS"]) in page
