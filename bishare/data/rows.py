"""The forms of a row of training data, and the parsing of a row's named fields.

Formats and their fields:

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

FORMAT_FIELDS = {
    "chat": "messages",
    "sharegpt": "conversations",
    "alpaca": "instruction",
    "completion": "prompt",
    "flan": "inputs",
    "text": "text",
}
"""The field that tells a format; a row with several of these fields has the first format in this order."""

SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""Roles by their names in ShareGPT."""


class Row(NamedTuple):
    """An instruction with its answer, in Alpaca's names of fields."""

    instruction: str
    input: str
    """Further context; may be empty."""
    output: str


class Message(NamedTuple):
    """A turn of a chat."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


class Chat(NamedTuple):
    """A conversation up to its last answer; there are no messages if nobody answers."""

    messages: tuple[Message, ...]


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
        if field in fields:
            return name  # type: ignore[return-value]  # the keys are the formats
    known = ", ".join(f"{field} ({name})" for name, field in FORMAT_FIELDS.items())
    raise UserError(f"{where}: no known format has the fields {_names(fields)}; want one of: {known}.")


def parse_row(fields: Any, format: Format, where: str) -> AnyRow:
    """The row with the given fields.

    Args:
        fields: The fields of the row, as read.
        format: The format of the row; not ``auto``.
        where: File and row, for messages.

    Raises:
        UserError: If a field is missing or has the wrong type, or a role is unknown.
    """
    check_object(fields, where)
    match format:
        case "alpaca":
            instruction, context = text_of(fields, "instruction", where), text_of(fields, "input", where, optional=True)
            return Row(instruction, context, text_of(fields, "output", where))
        case "chat":
            roles = dict(zip(SPEAKERS.values(), SPEAKERS.values(), strict=True))  # each role by its own name
            return _chat(fields, "messages", "role", "content", roles, where)
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
    # A question at the end has no answer to learn.
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return Chat(tuple(messages))


def check_object(fields: Any, where: str) -> None:
    """Raise a UserError unless the row is an object."""
    if not isinstance(fields, dict):
        raise UserError(f"{where}: {type(fields).__name__} found, want an object with named fields.")


def field_of(fields: dict[str, Any], name: str, where: str) -> Any:
    """The value of a required field; ``where`` names file and row.

    Raises:
        UserError: If the field is missing or null.
    """
    value = fields.get(name)
    if value is None:
        raise UserError(f"{where}: the field {name} is missing; fields found: {_names(fields)}.")
    return value


def text_of(fields: dict[str, Any], name: str, where: str, *, optional: bool = False) -> str:
    """The text of a field; empty if the field is optional and missing or null.

    Raises:
        UserError: If a required field is missing, or the value is not text.
    """
    if optional and fields.get(name) is None:
        return ""
    value = field_of(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: the field {name} is {type(value).__name__}, want text.")
    return value


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(map(str, fields)) or "none"
