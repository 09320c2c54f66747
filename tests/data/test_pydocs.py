import inspect
import textwrap

import pytest

from bishare.data.pydocs import PyDocsData, python_docs


@pytest.fixture(scope="module")
def docs():
    return python_docs()


def test_thousands_of_questions_have_a_fixed_order(docs):
    assert len(docs) > 2500
    assert len({row.instruction for row in docs}) == len({row.output for row in docs}) == len(docs)
    assert docs == sorted(docs, key=lambda row: row.instruction[len("What does `") :].split("`")[0])


def test_functions_classes_and_compiled_members_are_there(docs):
    answers = {row.instruction: row.output for row in docs}
    assert answers["What does `textwrap.dedent` do?"] == inspect.getdoc(textwrap.dedent)
    assert answers["What does `len` do?"] == len.__doc__
    assert answers["What does `str.casefold` do?"] == str.casefold.__doc__
    assert answers["What does `fractions.Fraction` do?"].startswith("This class implements rational numbers.")


def test_answers_are_whole_paragraphs_of_bounded_length(docs):
    for row in docs:
        assert 20 <= len(row.output) <= 1200
        assert row.output == row.output.strip()


def test_programs_tests_and_private_names_are_absent(docs):
    names = [row.instruction.split("`")[1] for row in docs]
    assert not [name for name in names if name.startswith(("test.", "idlelib.", "turtledemo.", "lib2to3."))]
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_it_is_a_data_module(tokenizer, docs, monkeypatch):
    monkeypatch.setattr("bishare.data.pydocs.python_docs", lambda: docs)  # reading them again takes seconds
    data = PyDocsData(tokenizer=tokenizer, max_examples=16, batch_size=8, num_validation=4, max_length=512)
    data.setup("fit")
    assert data.steps_per_epoch == 2
