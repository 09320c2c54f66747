"""The turns of a conversation, with all that a chat template may read of a turn.

A turn has a role and a content. The content is text, a list of text parts, or null beside a call of a function.
Further fields are ``tool_calls``, ``tool_call_id``, ``name`` and ``reasoning_content``, and ``weight`` (0 or 1) or
``train`` (true or false), which say whether an answer is trained.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from bishare.data.fields import check_object, field_of, from_json, list_of, text_of, to_json
from bishare.errors import UserError

TEMPLATE_FIELDS = ("reasoning_content", "tool_calls", "tool_call_id", "name")
"""Fields of a turn besides its content that chat templates read."""


class Message(NamedTuple):
    """A turn of a chat."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool``."""
    content: str
    trained: bool = True
    """Whether the turn, if it is an answer, is trained."""
    extra: str = ""
    """The turn's ``TEMPLATE_FIELDS`` as a JSON object; empty if there are none."""

    @property
    def fields(self) -> dict[str, Any]:
        """The turn's ``TEMPLATE_FIELDS`` by name."""
        return dict(json.loads(self.extra)) if self.extra else {}

    @property
    def says_something(self) -> bool:
        """Whether the turn has a content, or calls a function."""
        return bool(self.content.strip()) or "tool_calls" in self.fields

    def for_template(self) -> dict[str, Any]:
        """The turn as ``apply_chat_template`` takes a turn."""
        return {"role": self.role, "content": self.content, **self.fields}


class Names(NamedTuple):
    """How a format names the parts of a turn."""

    role: str
    content: str
    roles: Mapping[str, str]
    """The role by its name in the format."""


OPENAI = Names("role", "content", {name: name for name in ("system", "developer", "user", "assistant", "tool")})
SHAREGPT = Names(
    "from",
    "value",
    {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "tool": "tool",
        "observation": "tool",
    },
)


def parse_turns(
    fields: dict[str, Any], name: str, names: Names, where: str, unused: Counter[str] | None
) -> list[Message]:
    """The turns of a row.

    Args:
        fields: The fields of the row.
        name: The field with the list of turns.
        names: How the format names the parts of a turn.
        where: File and row, for messages.
        unused: Counts the fields of turns that training does not use.

    Raises:
        UserError: If a turn lacks a part, or a part has the wrong type or an unknown value.
    """
    turns = field_of(fields, name, where)
    if not isinstance(turns, list):
        raise UserError(f"{where}: the field {name} is {type(turns).__name__}, want a list of messages.")
    used = {names.role, names.content, "weight", "train", *TEMPLATE_FIELDS}
    messages = []
    for number, turn in enumerate(turns):
        at = f"{where}, {name}[{number}]"
        check_object(turn, at)
        role = text_of(turn, names.role, at)
        if role not in names.roles:
            raise UserError(f"{at}: {names.role} is {role}; known are {', '.join(names.roles)}.")
        if unused is not None:
            unused.update(f"{name}.{key}" for key in turn if key not in used and turn[key] not in (None, "", [], {}))
        extra = {key: turn[key] for key in TEMPLATE_FIELDS if turn.get(key)}
        if "tool_calls" in extra:
            extra["tool_calls"] = _calls(extra["tool_calls"], at)
        content = _content(turn, names.content, at, optional="tool_calls" in extra)
        written = to_json(extra, "tool_calls", at) if extra else ""
        messages.append(Message(names.roles[role], content, _trained(turn, at), written))
    return messages


def _content(turn: dict[str, Any], name: str, where: str, *, optional: bool) -> str:
    """The content as text; only a turn that calls a function may do without."""
    parts = turn.get(name)
    if not isinstance(parts, list):
        return text_of(turn, name, where, optional=optional)
    texts = []
    for part in parts:
        if isinstance(part, dict) and part.get("type", "text") != "text":
            raise UserError(f"{where}: {name} has a part of type {part['type']}; only text can be trained.")
        texts.append(text_of(part, "text", where) if isinstance(part, dict) else text_of({name: part}, name, where))
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[Any]:
    """The calls of functions, with the arguments as the objects that chat templates expect.

    The API of OpenAI gives the arguments as JSON text, and templates would quote the text once more.
    """
    found = []
    for call in list_of(calls, "tool_calls", where):
        check_object(call, where)
        function = call.get("function", call)
        check_object(function, where)
        text_of(function, "name", where)
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = from_json(arguments, "arguments", where) if arguments.strip() else {}
        called = {**function, "arguments": arguments or {}}
        found.append({**call, "function": called} if "function" in call else called)
    return found


def _trained(turn: dict[str, Any], where: str) -> bool:
    """Whether an answer is trained, by its ``weight`` or ``train``; by default, yes."""
    weight, train = turn.get("weight"), turn.get("train")
    if weight not in (None, 0, 1):
        raise UserError(f"{where}: weight is {weight}; an answer counts (1) or not (0), shares of it are not offered.")
    if train not in (None, True, False):
        raise UserError(f"{where}: train is {train}; want true or false.")
    return weight != 0 and train is not False
