"""The forms that a row of training data may have, and how the named fields of a row become one of them.

alpaca      instruction, input (may be left out), output
chat        messages: a list of role (system, user, assistant) and content
sharegpt    conversations: a list of from (system, human, gpt) and value
completion  prompt, completion
flan        inputs, targets, taken as instruction and output
text        text
"""

from typing import Any, Literal, NamedTuple

from bishare.errors import UserError

Format = Literal["auto", "alpaca", "chat", "sharegpt", "completion", "flan", "text"]

FIRST_FIELDS = {
    "chat": "messages",
    "sharegpt": "conversations",
    "alpaca": "instruction",
    "completion": "prompt",
    "flan": "inputs",
    "text": "text",
}
"""The field that tells a format; a row that has several is of the first of these formats."""

SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""Roles by their names in ShareGPT."""


class Row(NamedTuple):
    """One instruction with its answer, as Alpaca names the fields."""

    instruction: str
    input: str
    """Further context; empty if there is none."""
    output: str


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


class Chat(NamedTuple):
    """A conversation that ends with an answer; it has no messages if nobody answers."""

    messages: tuple[Message, ...]


class Completion(NamedTuple):
    """A text and how it goes on; both are taken as they are, without any wording around them."""

    prompt: str
    completion: str


class Text(NamedTuple):
    """A text to learn as a whole."""

    text: str


AnyRow = Row | Chat | Completion | Text


def answer_of(row: AnyRow) -> str:
    """What a model that is given the row's prompt should say."""
    match row:
        case Row():
            return row.output
        case Chat():
            return row.messages[-1].content if row.messages else ""
        case Completion():
            return row.completion
        case Text():
            return row.text


def detect_format(fields: Any, where: str) -> Format:
    """The format of a row, by its fields.

    Args:
        fields: The row.
        where: File and row, for messages.

    Raises:
        UserError: If it is not an object, or its fields fit no format.
    """
    check_object(fields, where)
    for name, field in FIRST_FIELDS.items():
        if field in fields:
            return name  # type: ignore[return-value]  # the keys are the formats
    known = ", ".join(f"{field} ({name})" for name, field in FIRST_FIELDS.items())
    raise UserError(f"{where}: no known format has the fields {_names(fields)}; want one of: {known}.")


def parse_row(fields: Any, format: Format, where: str) -> AnyRow:
    """The row that the fields make up.

    Args:
        fields: The row as it was read.
        format: Any but ``auto``.
        where: File and row, for messages.

    Raises:
        UserError: If a field is missing or holds something else than it should.
    """
    check_object(fields, where)
    match format:
        case "alpaca":
            names = ("instruction", "input", "output")
            return Row(*(text_of(fields, name, where, optional=name == "input") for name in names))
        case "chat":
            return _chat(fields, "messages", "role", "content", {role: role for role in SPEAKERS.values()}, where)
        case "sharegpt":
            return _chat(fields, "conversations", "from", "value", SPEAKERS, where)
        case "completion":
            return Completion(text_of(fields, "prompt", where), text_of(fields, "completion", where))
        case "flan":
            return Row(text_of(fields, "inputs", where), "", text_of(fields, "targets", where))
        case "text":
            return Text(text_of(fields, "text", where))
    raise AssertionError(format)


def _chat(fields: dict[str, Any], name: str, role: str, content: str, roles: dict[str, str], where: str) -> Chat:
    turns = field_of(fields, name, where)
    if not isinstance(turns, list):
        raise UserError(f"{where}: the field {name} is {type(turns).__name__}, want a list of messages.")
    messages = []
    for number, turn in enumerate(turns):
        at = f"{where}, {name}[{number}]"
        check_object(turn, at)
        speaker = text_of(turn, role, at)
        if speaker not in roles:
            raise UserError(f"{at}: {role} is {speaker}; known are {', '.join(roles)}.")
        messages.append(Message(roles[speaker], text_of(turn, content, at)))
    while messages and messages[-1].role != "assistant":
        messages.pop()  # nobody answers it
    return Chat(tuple(messages))


def check_object(fields: Any, where: str) -> None:
    """Raise a UserError unless the row is an object."""
    if not isinstance(fields, dict):
        raise UserError(f"{where}: {type(fields).__name__} found, want an object with named fields.")


def field_of(fields: dict[str, Any], name: str, where: str) -> Any:
    """The value of a field that must be there; ``where`` names file and row."""
    value = fields.get(name)
    if value is None:
        raise UserError(f"{where}: the field {name} is missing; fields found: {_names(fields)}.")
    return value


def text_of(fields: dict[str, Any], name: str, where: str, *, optional: bool = False) -> str:
    """The text of a field; empty if it is optional and not there."""
    if optional and fields.get(name) is None:
        return ""
    value = field_of(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: the field {name} is {type(value).__name__}, want text.")
    return value


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(map(str, fields)) or "none"
