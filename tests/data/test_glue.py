"""Rows of GLUE's tasks, from the hub's fields or a user's own, and what is wrong with those that are refused."""

import pytest

from bishare.data.glue import TASKS, Labelled, parse_labelled
from bishare.errors import UserError

HUB_ROWS = {
    "cola": {"sentence": "a", "label": 1, "idx": 0},
    "sst2": {"sentence": "a", "label": 1, "idx": 0},
    "mrpc": {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0},
    "qqp": {"question1": "a", "question2": "b", "label": 1, "idx": 0},
    "stsb": {"sentence1": "a", "sentence2": "b", "label": 1.0, "idx": 0},
    "mnli": {"premise": "a", "hypothesis": "b", "label": 1, "idx": 0},
    "qnli": {"question": "a", "sentence": "b", "label": 1, "idx": 0},
    "rte": {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0},
    "wnli": {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0},
}


@pytest.mark.parametrize("name", TASKS)
def test_rows_have_hub_fields_or_two_sentences(name) -> None:
    sentences = ("a", "b")[: len(TASKS[name].fields)]
    own = dict(zip(("sentence1", "sentence2"), sentences, strict=False)) | {"label": 1}
    assert parse_labelled(HUB_ROWS[name], name, "x") == parse_labelled(own, name, "x") == Labelled(sentences, 1.0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mrpc", {"label": None}, "rows.jsonl, row 7: the field label is null"),
        ("mrpc", {"sentence2": None}, "rows.jsonl, row 7: the field sentence2 is null"),
        ("mrpc", {"label": 2}, "row 7: label is 2; mrpc has the classes 0 and 1."),
        ("mrpc", {"label": -1}, "hide their labels"),
        ("mrpc", {"label": "1"}, "row 7: label is '1'"),
        ("mrpc", {"label": True}, "row 7: label is True"),
        ("mrpc", {"label": 0.5}, "row 7: label is 0.5"),
        ("mnli", {"label": 3}, "mnli has the classes 0, 1 and 2."),
        ("stsb", {"label": 5.5}, "stsb has scores from 0 to 5."),
        ("stsb", {"label": float("nan")}, "label is nan"),
    ],
)
def test_a_wrong_row_is_named(name, change, message) -> None:
    row = {"sentence1": "a", "sentence2": "b", "label": 1} | change
    with pytest.raises(UserError, match="row 7") as error:
        parse_labelled(row, name, "rows.jsonl, row 7")
    assert message in str(error.value)
