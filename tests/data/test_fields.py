import pytest

from bishare.data.fields import check_object, field_of, from_json, list_of, text_of, to_json
from bishare.errors import UserError


def test_texts_are_read_as_they_are() -> None:
    assert text_of({"a": "é🙂"}, "a", "row 1") == "é🙂"
    assert text_of({"a": None}, "a", "row 1", optional=True) == text_of({}, "a", "row 1", optional=True) == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"b": 1}, "x, row 3: the field a is missing; fields found: b."),
        ({"a": None}, "x, row 3: the field a is null"),
        ({"a": 4}, "x, row 3: the field a is int, want text."),
        ({"a": "b\ud83d"}, r"half of a character \(a lone surrogate\) at position 2"),
    ],
)
def test_a_wrong_text_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        text_of(fields, "a", "x, row 3")


def test_other_wrong_values_are_named() -> None:
    with pytest.raises(UserError, match="row 3: list found, want an object"):
        check_object([], "row 3")
    with pytest.raises(UserError, match="row 3: the field a is str, want a list"):
        list_of("b", "a", "row 3")
    with pytest.raises(UserError, match="row 3: the field a is not JSON"):
        from_json("{", "a", "row 3")
    with pytest.raises(UserError, match="row 3: the field a cannot be written as JSON"):
        to_json({1, 2}, "a", "row 3")
    assert field_of({"a": 0}, "a", "row 3") == 0
    assert from_json(to_json({"é": [1]}, "a", ""), "a", "") == {"é": [1]}
