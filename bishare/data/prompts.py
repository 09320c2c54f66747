"""Renders a row as text, by the Alpaca prompt or the tokenizer's chat template, and finds the answers in the text.

The Alpaca wording is that of Taori et al., 2023 (https://github.com/tatsu-lab/stanford_alpaca).
"""

from typing import Literal

from transformers import PreTrainedTokenizerBase

from bishare.data.chats import Reply, chat_prompt, chat_reply
from bishare.data.rows import AnyRow, Chat, Completion, Row, Text
from bishare.data.turns import Message
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


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: AnyRow, prompt: Prompt) -> str:
    """The text up to the start of the last answer; a chat template's is a :class:`~bishare.data.chats.TemplateText`.

    Raises:
        UserError: If the chat template is needed and the tokenizer has none.
    """
    match row:
        case Row() if prompt == "alpaca":
            return _alpaca(row)
        case Row() | Chat():  # a chat has no Alpaca wording
            return chat_prompt(tokenizer, as_chat(row))
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
            return _continued(_alpaca(row), row.output)
        case Row() | Chat():
            return chat_reply(tokenizer, as_chat(row))
        case Completion():
            return _continued(row.prompt, row.completion)
        case Text():
            return _continued("", row.text)


def as_chat(row: Row | Chat) -> Chat:
    """The row as a conversation."""
    if isinstance(row, Chat):
        return row
    messages = [Message("system", row.system)] if row.system else []
    for question, answer in row.history:
        messages += [Message("user", question), Message("assistant", answer)]
    question = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return Chat((*messages, Message("user", question), Message("assistant", row.output)))


def _alpaca(row: Row) -> str:
    if row.system or row.history:
        raise UserError(
            f"The row {row.instruction[:60]!r} has a system message or a history, for which Alpaca's wording has no "
            "place; set prompt: chat."
        )
    wording = ALPACA_WITH_INPUT if row.input else ALPACA
    return wording.format(instruction=row.instruction, input=row.input)


def _continued(before: str, answer: str) -> Reply:
    return Reply(before + answer, ((len(before), len(before) + len(answer)),))
