"""Numbers among the options have a least value."""

import pytest

from bishare.commands.evaluate.options import Options
from bishare.errors import UserError


@pytest.mark.parametrize(("name", "least"), [("shots", 0), ("limit", 1), ("batch_size", 1)])
def test_numbers_have_a_least_value(name: str, least: int) -> None:
    options = Options(adapter="a", suite="mmlu", **{name: least})
    assert getattr(options, name) == least
    with pytest.raises(UserError, match=f"{name} is {least - 1}; it must be at least {least}"):
        Options(adapter="a", suite="mmlu", **{name: least - 1})
