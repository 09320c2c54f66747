from collections import Counter

import pytest

from bishare.data.turns import OPENAI, SHAREGPT, Message, parse_turns
from bishare.errors import UserError


def parse(*turns: object) -> list[Message]:
    return parse_turns({"messages": list(turns)}, "messages", OPENAI, "x, row 2", None)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse({"role": "user", "content": parts}) == [Message("user", "ab")]


def test_a_call_may_have_no_content() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
    message = parse({"role": "assistant", "content": None, "tool_calls": [call]})[0]
    assert message.content == ""
    assert message.says_something
    # Templates expect the arguments as an object.
    assert message.fields["tool_calls"][0]["function"] == {"name": "clock", "arguments": {"zone": "UTC"}}
    assert message.for_template()["tool_calls"] == message.fields["tool_calls"]


@pytest.mark.parametrize(("field", "trained"), [({}, True), ({"weight": 0}, False), ({"weight": 1.0}, True)])
def test_a_weight_says_what_is_trained(field: dict[str, object], trained: bool) -> None:
    assert parse({"role": "assistant", "content": "a", **field})[0].trained is trained


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "bot", "content": "a"}, r"x, row 2, messages\[0\]: role is bot; known are system, developer, user"),
        ({"role": "user", "content": None}, r"messages\[0\]: the field content is null"),
        (
            {"role": "user", "content": [{"type": "image"}]},
            "content has a part of type image; only text can be trained",
        ),
        ({"role": "assistant", "content": "a", "weight": 0.5}, "weight is 0.5; an answer counts"),
        ({"role": "assistant", "content": "a", "train": "no"}, "train is no; want true or false"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "the field name is missing"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "the field arguments is not JSON"),
        ("a", r"messages\[0\]: str found, want an object"),
    ],
)
def test_a_wrong_turn_is_named(turn: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(turn)


def test_unused_fields_are_counted() -> None:
    unused: Counter[str] = Counter()
    turns = {"conversations": [{"from": "human", "value": "a", "id": 3, "note": None}]}
    assert parse_turns(turns, "conversations", SHAREGPT, "x", unused) == [Message("user", "a")]
    assert unused == {"conversations.id": 1}
