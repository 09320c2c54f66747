from pathlib import Path

import pytest

from bishare.data.hub import errors_of_hub, files_of_folder
from bishare.errors import UserError


def test_files_of_a_split_are_found(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.json", "test.jsonl"):
        (tmp_path / name).touch()
    assert files_of_folder(str(tmp_path), "train", None) == [tmp_path / "train-0.jsonl", tmp_path / "train-1.json"]
    with pytest.raises(UserError, match=r"has no split dev; it has train, test\."):
        files_of_folder(str(tmp_path), "dev", None)


def test_other_files_are_left_to_datasets(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n", encoding="utf-8")
    assert files_of_folder(str(tmp_path), "train", None) is None
    assert files_of_folder("owner/name", "train", None) is None


def test_every_error_becomes_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"^The data set a cannot be loaded: two lines\. Check its name"),
        errors_of_hub("a"),
    ):
        raise OSError("two\nlines.")
