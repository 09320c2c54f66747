"""The example rows on the page of data are read as their headings say."""

import json
import re

import pytest

from bishare.data.glue import parse_labelled
from bishare.data.rows import FORMAT_FIELDS, detect_format, is_answered, parse_row
from tests.places import PROJECT

PAGE = (PROJECT / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### (.+)\n\n```json\n(.+)\n```", PAGE, re.MULTILINE))


@pytest.mark.parametrize("format", FORMAT_FIELDS)
def test_an_example_has_its_format(format: str) -> None:
    fields = json.loads(EXAMPLES[f"`{format}`"])
    assert detect_format(fields, "docs/data.md") == format
    assert parse_row(fields, format, "docs/data.md")


def test_every_example_is_read() -> None:
    for text in re.findall(r"```json\n(.+)\n```", PAGE):
        fields = json.loads(text)
        if "label" not in fields:
            assert is_answered(parse_row(fields, detect_format(fields, "docs/data.md"), "docs/data.md"))


def test_formats_stand_in_the_order_of_detection() -> None:
    assert [heading.strip("`") for heading in EXAMPLES if "`" in heading] == list(FORMAT_FIELDS)


def test_the_sentences_are_labelled() -> None:
    fields = json.loads(EXAMPLES["Sentences to classify"])
    assert parse_labelled(fields, "mrpc", "docs/data.md").sentences == ("He left early.", "He went away early.")
