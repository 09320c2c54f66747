from pathlib import Path

import pytest

from bishare.commands.evaluate.rows import read
from bishare.errors import UserError


def test_only_rows_of_a_subject_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"subject": "law", "question": "a", "answer": 0, "choices": ["x", "y"]}\n'
        '{"subject": "art", "question": "b", "answer": 1, "choices": ["x", "y"]}\n'
    )
    rows = read(files={"test": "a.jsonl"}, data=str(tmp_path), subject="art", version=1.0)
    assert rows["test"]["question"] == ["b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"}', "row 1 has no 'answer'"),
        ("[1]", "row 1 is list"),
        ('{"question": "a", "answer": 2, "choices": ["x", "y"]}', "answer is 2; want an index of its 2 choices"),
        ('{"question": "a", "answer": "0", "choices": ["x", "y"]}', "answer is '0'"),
        ('{"question": "a", "answer": true, "choices": ["x", "y"]}', "answer is True"),
        ('{"question": "a", "answer": 0, "choices": ["x"]}', "want a list of two texts or more"),
        ('{"question": "a", "answer": 0, "choices": [1, 2]}', "want a list of two texts or more"),
        ('{"question": ', "row 1: broken JSON"),
        ("", "holds no row"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=message) as error:
        read(files={"test": "a.jsonl"}, data=str(tmp_path))
    assert "a.jsonl" in str(error.value)


def test_a_subject_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match="holds no row with subject 'law'"):
        read(files={"test": "a.jsonl"}, data=str(tmp_path), subject="law")


def test_missing_folder_says_how_to_give_it() -> None:
    with pytest.raises(UserError, match="--metadata"):
        read(files={"test": "a.jsonl"}, config_source="task.yaml")
