"""Renders a chat by the tokenizer's chat template, and finds what the model writes in the text.

The text of a chat is what ``apply_chat_template`` gives. An answer begins where the template's generation prompt ends,
so that training and generation read the same text before an answer. A thinking template may write a block in front of
an answer: the block is then a part of the answer. Some templates write an earlier answer in another way than the last
one, without its thoughts for example. Such an earlier answer is read and not trained.
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bishare.data.rows import Chat
from bishare.data.turns import Message
from bishare.errors import UserError

PLACEHOLDER = "\ue000answer\ue000"
"""Replaces an answer while the text behind answers is looked for; text holds no characters of the private use area."""
THOUGHT_TAGS = ("<think>", "</think>")
"""What separates thoughts from what is said inside a content."""


class TemplateText(str):
    """A text that a chat template wrote: the text has all its special tokens, and a tokenizer must add none."""

    __slots__ = ()


class Reply(NamedTuple):
    """A whole text with the positions of its trained answers, ``text[start:end]`` each."""

    text: str
    answers: tuple[tuple[int, int], ...]
    num_rewritten: int = 0
    """Earlier answers of a chat that are not trained, because the template writes them otherwise than a last answer."""


def chat_prompt(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> TemplateText:
    """The text behind which the model writes the last answer.

    Raises:
        UserError: If the tokenizer has no chat template, or the template refuses the chat.
    """
    return TemplateText(_render(tokenizer, chat.messages[:-1], chat.tools, prompt=True))


def chat_reply(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> Reply:
    """The text of a chat, and where its trained answers stand.

    Raises:
        UserError: If the tokenizer has no chat template, the template refuses the chat, leaves out a part of the chat,
            or writes the last answer behind another text than the generation prompt.
    """
    messages, tools = chat.messages, chat.tools
    if not messages:
        return Reply(TemplateText(""), ())
    text, prompt = _render(tokenizer, messages, tools), chat_prompt(tokenizer, chat)
    closing, start = _closing(tokenizer, chat), len(prompt)
    _check_prompt(prompt, chat, text)
    end = _end(text, closing, tokenizer)
    _check_nothing_is_lost(tokenizer, chat, text, answer=text[start:end])
    answers, num_rewritten = [], 0
    for number, message in enumerate(messages[:-1]):
        if message.role != "assistant" or not message.trained:
            continue
        # The chat as it stood when this answer was the last one.
        then = _render(tokenizer, messages[: number + 1], tools)
        before = _render(tokenizer, messages[:number], tools, prompt=True)
        if text.startswith(then) and then.startswith(before):
            answers.append((len(before), _end(then, closing, tokenizer)))
        else:
            num_rewritten += 1
    return Reply(TemplateText(text), (*answers, (start, end)), num_rewritten)


def read_template(given: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template in a file, or a template of the tokenizer by its name.

    Raises:
        UserError: If there is neither such a file nor such a name.
    """
    own = getattr(tokenizer, "chat_template", None)
    named: dict[str, str] = own if isinstance(own, dict) else {}
    if given in named:
        return named[given]
    path = Path(given).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = f"the tokenizer's templates are {', '.join(named)}" if named else "the tokenizer has no named templates"
        raise UserError(f"chat_template: there is no readable file {given}, and {known}.") from error


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the chat template writes behind an answer; empty without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        return _closing(tokenizer, Chat((Message("user", "a"), Message("assistant", "b"))))
    except UserError:  # a template for other conversations
        return ""


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: str, *, prompt: bool = False
) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "The tokenizer has no chat template, which prompt: chat and rows of messages need; use a chat model, give "
            "a template with chat_template, or use instructions with prompt: alpaca."
        )
    conversation: list[dict[str, Any]] = [message.for_template() for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation,
            tools=json.loads(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    except (TemplateError, TypeError) as error:  # a template's own rule, for example: roles must alternate
        raise UserError(f"The tokenizer's chat template refuses {_named(messages)}: {error}") from error
    assert isinstance(text, str)
    return text


def _closing(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    """The text that the template writes behind the last answer."""
    plain = (*chat.messages[:-1], Message("assistant", PLACEHOLDER))
    _, found, closing = _render(tokenizer, plain, chat.tools).partition(PLACEHOLDER)
    if not found:
        raise UserError(f"The tokenizer's chat template leaves out the answer in {_named(chat.messages)}.")
    return closing


def _end(text: str, closing: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where the last answer of a text ends."""
    if closing and text.endswith(closing):
        return len(text) - len(closing)
    # A call of a function may be closed by another token than a plain answer.
    stripped = text.rstrip()
    for token in tokenizer.all_special_tokens:
        if stripped.endswith(token):
            return len(stripped) - len(token)
    return len(text)


def _check_prompt(prompt: str, chat: Chat, text: str) -> None:
    if not text.startswith(prompt):
        raise UserError(
            f"The tokenizer's chat template asks for an answer with {prompt[-40:]!r}, but writes the last answer of "
            f"{_named(chat.messages)} behind another text, so the model would be asked in another way than it was "
            "trained; give a template that does both alike with chat_template."
        )


def _check_nothing_is_lost(tokenizer: PreTrainedTokenizerBase, chat: Chat, text: str, *, answer: str) -> None:
    """Raise a UserError if the template leaves out a message, the tools, or a part of the last answer."""
    for message in chat.messages[:-1]:
        if message.role in ("system", "user") and message.content.strip() not in text:
            raise _lost(f"the {message.role}'s message {_short(message.content)}", chat)
    for tool in json.loads(chat.tools or "[]"):
        name = str(tool.get("function", tool).get("name", "")) if isinstance(tool, dict) else ""
        if name not in text:
            raise _lost(f"the tool {name}", chat)
    if any(message.role == "tool" for message in chat.messages):
        hidden = [m._replace(content=PLACEHOLDER) if m.role == "tool" else m for m in chat.messages]
        wanted = sum(message.role == "tool" for message in chat.messages)
        if _render(tokenizer, hidden, chat.tools).count(PLACEHOLDER) < wanted:
            raise _lost("what a tool returned", chat)
    for what, part in _parts(chat.messages[-1]):
        if part not in answer:
            raise _lost(f"{what} {_short(part)} of the last answer", chat)


def _parts(message: Message) -> list[tuple[str, str]]:
    """The parts of an answer that the template must write, each with the name of its kind."""
    fields, content = message.fields, message.content
    for tag in THOUGHT_TAGS:
        content = content.replace(tag, "\0")
    pieces = [("the text", piece.strip()) for piece in content.split("\0")]
    pieces.append(("the reasoning", str(fields.get("reasoning_content", "")).strip()))
    for call in fields.get("tool_calls", []):
        pieces.append(("the call of", str(call.get("function", call)["name"])))
    return pieces


def _lost(what: str, chat: Chat) -> UserError:
    return UserError(
        f"The tokenizer's chat template leaves out or rewrites {what} in {_named(chat.messages)}; change the rows, or "
        "give a template that writes all with chat_template."
    )


def _named(messages: Sequence[Message]) -> str:
    return f"the chat that begins {_short(messages[0].content)}" if messages else "an empty chat"


def _short(text: str) -> str:
    return repr(textwrap.shorten(text, 60, placeholder=" ..."))
