"""Renders a row as text, by the Alpaca prompt or the tokenizer's chat template, and finds the answers in the text.

The Alpaca wording is that of Taori et al., 2023 (https://github.com/tatsu-lab/stanford_alpaca).
"""

import textwrap
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bishare.data.rows import AnyRow, Chat, Completion, Message, Row, Text
from bishare.errors import UserError

Prompt = Literal["alpaca", "chat"]

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
PLACEHOLDER = "\ue000answer\ue000"
"""Replaces an answer while the answers are located; text holds no characters of the private use area."""


class Reply(NamedTuple):
    """A whole text with the positions of its answers, ``text[start:end]`` each."""

    text: str
    answers: tuple[tuple[int, int], ...]


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: AnyRow, prompt: Prompt) -> str:
    """The text up to the start of the last answer.

    Raises:
        UserError: If the chat template is needed and the tokenizer has none.
    """
    match row:
        case Row() if prompt == "alpaca":
            wording = ALPACA_WITH_INPUT if row.input else ALPACA
            return wording.format(instruction=row.instruction, input=row.input)
        case Row() | Chat():  # a chat has no Alpaca wording
            return _chat(tokenizer, _messages(row)[:-1], add_generation_prompt=True)
        case Completion():
            return row.prompt
        case Text():
            return ""


def render_reply(tokenizer: PreTrainedTokenizerBase, row: AnyRow, prompt: Prompt) -> Reply:
    """The whole text, and the positions of the answers in it.

    Raises:
        UserError: If the chat template is needed and the tokenizer has none, or the template leaves an answer out.
    """
    match row:
        case Row() if prompt == "alpaca":
            return _continued(render_prompt(tokenizer, row, prompt), row.output)
        case Row() | Chat():
            return _chat_reply(tokenizer, _messages(row))
        case Completion():
            return _continued(row.prompt, row.completion)
        case Text():
            return _continued("", row.text)


def _continued(before: str, answer: str) -> Reply:
    return Reply(before + answer, ((len(before), len(before) + len(answer)),))


def _messages(row: Row | Chat) -> list[Message]:
    if isinstance(row, Chat):
        return list(row.messages)
    question = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return [Message("user", question), Message("assistant", row.output)]


def _chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "The tokenizer has no chat template, which prompt: chat and rows of messages need; "
            "use a chat model, or instructions with prompt: alpaca."
        )
    try:
        text = tokenizer.apply_chat_template(
            [message._asdict() for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:  # a template's own rule, for example: roles must alternate
        raise UserError(f"The tokenizer's chat template refuses {_named(messages)}: {error}") from error
    assert isinstance(text, str)
    return text


def _chat_reply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Reply:
    """A chat in the template's words, rendered once more with placeholders for the answers to locate them."""
    if not messages:
        return Reply("", ())
    text = _chat(tokenizer, messages)
    opening, *between = _chat(tokenizer, [_masked(message) for message in messages]).split(PLACEHOLDER)
    start, answers = len(opening), []
    for number, piece in enumerate(between, start=1):
        # An answer ends where the template's next piece begins. The last piece is looked for at the end of the text:
        # the last answer may contain the same words.
        end = text.find(piece, start) if number < len(between) else len(text) - len(piece)
        if end < start:
            break
        answers.append((start, end))
        start = end + len(piece)
    roles = [message.role for message in messages]
    complete = len(answers) == roles.count("assistant")
    # A template may strip, rewrite or drop an answer; labels would then be wrong.
    if not (complete and text.startswith(opening) and text.endswith(between[-1])):
        raise UserError(
            f"The tokenizer's chat template changes or leaves out the answer in {_named(messages)}; "
            "use instructions with prompt: alpaca."
        )
    return Reply(text, tuple(answers))


def _masked(message: Message) -> Message:
    """The message with a placeholder for an answer."""
    return Message(message.role, PLACEHOLDER) if message.role == "assistant" else message


def _named(messages: Sequence[Message]) -> str:
    return f"the chat that begins {textwrap.shorten(messages[0].content, 60, placeholder=' ...')!r}"
