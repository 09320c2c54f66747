"""The forms of a row of training data, and the parsing of a row's named fields.

Formats and their fields:

alpaca      instruction, input (may be left out), output; system and history (pairs of question and answer)
chat        messages (see ``turns.py``); tools
sharegpt    conversations: a list of from (system, human, gpt, tool) and value; system and tools
completion  prompt, completion
flan        inputs, targets, taken as instruction and output
text        text
"""

from collections import Counter
from typing import Any, Literal, NamedTuple

from bishare.data.fields import check_object, from_json, list_of, text_of, to_json
from bishare.data.turns import OPENAI, SHAREGPT, Message, parse_turns
from bishare.errors import UserError

Format = Literal["auto", "alpaca", "chat", "sharegpt", "completion", "flan", "text"]

FORMAT_FIELDS = {
    "chat": "messages",
    "sharegpt": "conversations",
    "alpaca": "instruction",
    "completion": "prompt",
    "flan": "inputs",
    "text": "text",
}
"""The field that tells a format; a row with several of these fields has the first format in this order."""

USED = {
    "alpaca": {"instruction", "input", "output", "system", "history"},
    "chat": {"messages", "tools"},
    "sharegpt": {"conversations", "system", "tools"},
    "completion": {"prompt", "completion"},
    "flan": {"inputs", "targets"},
    "text": {"text"},
}
"""The fields of a row that training uses, by format."""


class Row(NamedTuple):
    """An instruction with its answer, in Alpaca's names of fields."""

    instruction: str
    input: str
    """Further context; may be empty."""
    output: str
    system: str = ""
    """Message before the conversation; may be empty."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier questions with their answers."""


class Chat(NamedTuple):
    """A conversation up to its last trained answer; there are no messages without such an answer."""

    messages: tuple[Message, ...]
    tools: str = ""
    """The functions that the assistant may call, as a JSON list; empty if there are none."""


class Completion(NamedTuple):
    """A text and its continuation, both taken without any wording around them."""

    prompt: str
    completion: str


class Text(NamedTuple):
    """A text to learn as a whole."""

    text: str


AnyRow = Row | Chat | Completion | Text


def answer_of(row: AnyRow) -> str:
    """The reference answer to the row's prompt; a chat has its last answer."""
    match row:
        case Row():
            return row.output
        case Chat():
            return row.messages[-1].content if row.messages else ""
        case Completion():
            return row.completion
        case Text():
            return row.text


def is_answered(row: AnyRow) -> bool:
    """Whether the row has an answer to learn: not empty, or in a chat a call of a function."""
    if isinstance(row, Chat):
        return bool(row.messages) and row.messages[-1].says_something
    return bool(answer_of(row).strip())


def detect_format(fields: Any, where: str) -> Format:
    """The format of a row, by its fields.

    Args:
        fields: The row.
        where: File and row, for messages.

    Raises:
        UserError: If the row is not an object, or its fields fit no format.
    """
    check_object(fields, where)
    for name, field in FORMAT_FIELDS.items():
        if fields.get(field) is not None:
            return name  # type: ignore[return-value]  # the keys are the formats
    known = ", ".join(f"{field} ({name})" for name, field in FORMAT_FIELDS.items())
    raise UserError(
        f"{where}: no known format has the fields {', '.join(map(str, fields)) or 'none'}; want one of: {known}."
    )


def parse_row(fields: Any, format: Format, where: str, unused: Counter[str] | None = None) -> AnyRow:
    """The row with the given fields.

    Args:
        fields: The fields of the row, as read.
        format: The format of the row; not ``auto``.
        where: File and row, for messages.
        unused: Counts the fields that training does not use, by name.

    Raises:
        UserError: If a field is missing or has the wrong type, or a role is unknown.
    """
    check_object(fields, where)
    if unused is not None:
        unused.update(name for name in fields if name not in USED[format] and fields[name] not in (None, "", [], {}))
    match format:
        case "alpaca":
            return Row(
                text_of(fields, "instruction", where),
                text_of(fields, "input", where, optional=True),
                text_of(fields, "output", where),
                text_of(fields, "system", where, optional=True),
                _history(fields, where),
            )
        case "chat":
            return _chat(parse_turns(fields, "messages", OPENAI, where, unused), fields, where)
        case "sharegpt":
            return _chat(parse_turns(fields, "conversations", SHAREGPT, where, unused), fields, where)
        case "completion":
            return Completion(text_of(fields, "prompt", where), text_of(fields, "completion", where))
        case "flan":
            return Row(text_of(fields, "inputs", where), "", text_of(fields, "targets", where))
        case "text":
            return Text(text_of(fields, "text", where))
    raise AssertionError(format)


def _chat(messages: list[Message], fields: dict[str, Any], where: str) -> Chat:
    if messages and (system := text_of(fields, "system", where, optional=True)):
        messages = [Message("system", system), *messages]
    # What stands behind the last trained answer is nothing to learn, and no prompt either.
    while messages and not (messages[-1].role == "assistant" and messages[-1].trained):
        messages.pop()
    tools = fields.get("tools")
    if isinstance(tools, str) and tools.strip():  # some tools write the list as text
        tools = from_json(tools, "tools", where)
    return Chat(tuple(messages), to_json(list_of(tools, "tools", where), "tools", where) if tools else "")


def _history(fields: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for number, pair in enumerate(list_of(fields.get("history") or [], "history", where)):
        at = f"{where}, history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{at}: want a list of a question and its answer.")
        question, answer = (text_of({"history": text}, "history", at) for text in pair)
        pairs.append((question, answer))
    return tuple(pairs)
