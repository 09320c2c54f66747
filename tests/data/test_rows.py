from collections import Counter

import pytest

from bishare.data.rows import (
    Chat,
    Completion,
    Message,
    Row,
    Text,
    answer_of,
    detect_format,
    is_answered,
    parse_row,
)
from bishare.errors import UserError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
]
CONVERSATIONS = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello."},
]
CHAT = Chat((Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello.")))


@pytest.mark.parametrize(
    ("fields", "format", "row"),
    [
        ({"instruction": "Add.", "output": "2", "text": "Add. 2"}, "alpaca", Row("Add.", "", "2")),
        ({"messages": MESSAGES, "prompt": "Hi"}, "chat", CHAT),
        ({"conversations": CONVERSATIONS, "id": 3}, "sharegpt", CHAT),
        ({"prompt": "1, 2,", "completion": " 3"}, "completion", Completion("1, 2,", " 3")),
        ({"inputs": "1 + 1?", "targets": "2", "task_name": "sums"}, "flan", Row("1 + 1?", "", "2")),
        ({"text": "Once upon a time."}, "text", Text("Once upon a time.")),
    ],
)
def test_the_fields_tell_the_format(fields, format, row):
    assert detect_format(fields, "here") == format
    assert parse_row(fields, format, "here") == row


@pytest.mark.parametrize(
    ("row", "answer"),
    [(Row("a", "b", "c"), "c"), (CHAT, "Hello."), (Chat(()), ""), (Completion("a", "b"), "b"), (Text("a"), "a")],
)
def test_every_row_has_an_answer(row, answer):
    assert answer_of(row) == answer


def test_unanswered_turns_are_left_out_of_chats():
    question = {"role": "user", "content": "Bye"}
    assert parse_row({"messages": [*MESSAGES, question]}, "chat", "here") == CHAT
    assert parse_row({"messages": [question]}, "chat", "here") == Chat(())
    assert parse_row({"messages": []}, "chat", "here") == Chat(())


@pytest.mark.parametrize(
    ("fields", "format", "message"),
    [
        ({"messages": "Hi"}, "chat", r"the field messages is str, want a list"),
        ({"text": "Hi"}, "chat", r"the field messages is missing; fields found: text"),
        ({"messages": [*MESSAGES, "Hi"]}, "chat", r"messages\[3\]: str found, want an object"),
        ({"messages": [{"role": "user"}]}, "chat", r"messages\[0\]: the field content is missing; fields found: role"),
        ({"messages": [{"role": "user", "content": 1}]}, "chat", r"messages\[0\]: the field content is int"),
        (
            {"messages": [{"role": "human", "content": "Hi"}]},
            "chat",
            r"role is human; known are system, developer, user, assis",
        ),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, "sharegpt", r"conversations\[0\]: from is bot; known"),
        ({"prompt": "Hi"}, "completion", r"the field completion is missing"),
        ({"text": None}, "text", r"the field text is null"),
    ],
)
def test_faults_name_the_place_and_field(fields, format, message):
    with pytest.raises(UserError, match=rf"x\.json, row 7.*{message}"):
        parse_row(fields, format, "x.json, row 7")


def test_a_system_message_and_a_history_are_kept():
    fields = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    assert parse_row(fields, "alpaca", "x") == Row("c", "", "d", "s", (("a", "b"),))
    chat = parse_row(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        "sharegpt",
        "x",
    )
    assert chat == Chat((Message("system", "s"), Message("user", "a"), Message("assistant", "b")))


def test_a_chat_ends_with_its_last_trained_answer():
    turns = [("user", "a", 1), ("assistant", "b", 1), ("user", "c", 1), ("assistant", "d", 0)]
    messages = [{"role": role, "content": content, "weight": weight} for role, content, weight in turns]
    assert parse_row({"messages": messages}, "chat", "x").messages == (Message("user", "a"), Message("assistant", "b"))


@pytest.mark.parametrize("history", ["a", [["a"]], [["a", 1]]])
def test_a_wrong_history_is_named(history):
    with pytest.raises(UserError, match=r"x, row 7.*history"):
        parse_row({"instruction": "c", "output": "d", "history": history}, "alpaca", "x, row 7")


def test_rows_with_an_answer_are_told_apart():
    call = Message("assistant", "", extra='{"tool_calls": [{"name": "f"}]}')
    assert all(
        map(is_answered, [Row("a", "", "b"), Text("a"), Completion("", "a"), Chat((Message("user", "a"), call))])
    )
    assert not any(map(is_answered, [Row("a", "", " "), Text(""), Completion("a", "\n"), Chat(())]))


def test_fields_that_are_not_used_are_counted():
    unused = Counter()
    parse_row({"instruction": "a", "output": "b", "text": "ab", "id": None}, "alpaca", "x", unused)
    assert unused == {"text": 1}
