from pathlib import Path

import pytest

from bishare.commands.evaluate.catalog import SUITES, check_local, find_suite
from bishare.errors import UserError


def test_unknown_suite_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean commonsense"):
        find_suite("comonsense")
    with pytest.raises(UserError, match="commonsense, mmlu, gsm8k"):
        find_suite("glue")


@pytest.mark.parametrize("name", list(SUITES))
def test_a_missing_file_is_named(name: str, rows_folder: Path) -> None:
    suite = find_suite(name)
    check_local(name, suite, str(rows_folder), suite.shots)
    (rows_folder / suite.files[-1]).unlink()
    with pytest.raises(UserError, match=suite.files[-1]):
        check_local(name, suite, str(rows_folder), suite.shots)


def test_more_examples_than_exist_are_refused(rows_folder: Path) -> None:
    with pytest.raises(UserError, match="no examples to show; give --shots 0"):
        check_local("commonsense", SUITES["commonsense"], str(rows_folder), 1)
    with pytest.raises(UserError, match="5 examples to show; give --shots 5"):
        check_local("mmlu", SUITES["mmlu"], str(rows_folder), 6)
    check_local("gsm8k", SUITES["gsm8k"], str(rows_folder), 8)
