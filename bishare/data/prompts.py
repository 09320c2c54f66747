"""Turns a row into token ids and labels, by the Alpaca prompt or the tokenizer's chat template.

The Alpaca wording is that of Taori et al., 2023 (https://github.com/tatsu-lab/stanford_alpaca). A label is the token
itself where the loss counts and -100 elsewhere; labels are not shifted (the model shifts them).
"""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bishare.data.rows import AnyRow, Chat, Completion, Message, Row, Text
from bishare.errors import UserError

Prompt = Literal["alpaca", "chat"]
LossOn = Literal["answer", "all"]

NO_LABEL = -100

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
MARK = "\ue000answer\ue000"
"""Stands for an answer where the places of the answers are looked for; text does not hold private characters."""


class Example(NamedTuple):
    """One tokenised example."""

    input_ids: list[int]
    labels: list[int]
    """As long as ``input_ids``; -100 where a token carries no loss, everywhere if no token of an answer fits."""
    cut: bool
    """Whether tokens were left out to fit the maximum length."""


class Reply(NamedTuple):
    """A whole text with the places of its answers, ``text[start:end]`` each."""

    text: str
    answers: tuple[tuple[int, int], ...]


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: AnyRow, prompt: Prompt) -> str:
    """The text up to where the last answer starts.

    Raises:
        UserError: If the chat template is needed and the tokenizer has none.
    """
    match row:
        case Row() if prompt == "alpaca":
            return (ALPACA_WITH_INPUT if row.input else ALPACA).format(instruction=row.instruction, input=row.input)
        case Row() | Chat():
            return _chat(tokenizer, _messages(row)[:-1], add_generation_prompt=True)
        case Completion():
            return row.prompt
        case Text():
            return ""


def render_reply(tokenizer: PreTrainedTokenizerBase, row: AnyRow, prompt: Prompt) -> Reply:
    """The whole text, and where the answers stand in it.

    Raises:
        UserError: If the chat template is needed and the tokenizer has none, or it leaves an answer out.
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


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[AnyRow], *, prompt: Prompt, loss_on: LossOn, max_length: int
) -> list[Example]:
    """Tokenise rows; each example ends with its end-of-text token, or the end of the last answer's turn in a chat.

    A longer example keeps its first ``max_length - 1`` tokens and an end token; what would follow the last answer that
    fits is left out. With ``loss_on="answer"`` the labels are the answers, each with the token that ends it, or nothing
    if no token of an answer is left. A plain text is all answer.

    Raises:
        UserError: If the tokenizer has no end-of-text token, or no chat template where one is needed.
    """
    replies = [render_reply(tokenizer, row, prompt) for row in rows]
    closing = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    examples = []
    for reply, tokens in zip(replies, _tokenise(tokenizer, [reply.text for reply in replies]), strict=True):
        turns = [_answer_tokens(tokenizer, tokens, reply, place) for place in range(len(reply.answers))]
        ids, turns = _close(tokenizer, tokens.ids, turns, closing)
        examples.append(_label(ids, turns, loss_on, max_length))
    return examples


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> dict[str, Any]:
    """Tokenise rendered prompts for generation: ``input_ids`` and ``attention_mask`` ``[b, n]``, padded on the left."""
    rows = [_without_end(tokenizer, tokens.ids) for tokens in _tokenise(tokenizer, prompts)]
    padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}


# --- text ----------------------------------------------------------------------------------------------------------


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
    except TemplateError as error:  # such as: roles must alternate
        raise UserError(f"The tokenizer's chat template refuses {_named(messages)}: {error}") from error
    assert isinstance(text, str)
    return text


def _chat_reply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Reply:
    """A chat in the template's words; rendered once more with marks for the answers, to see where they stand."""
    if not messages:
        return Reply("", ())
    text = _chat(tokenizer, messages)
    marked = [Message(m.role, MARK) if m.role == "assistant" else m for m in messages]
    opening, *between = _chat(tokenizer, marked).split(MARK)
    start, answers = len(opening), []
    for number, piece in enumerate(between, start=1):
        end = text.find(piece, start) if number < len(between) else len(text) - len(piece)
        if end < start:
            break
        answers.append((start, end))
        start = end + len(piece)
    complete = len(answers) == sum(m.role == "assistant" for m in messages)
    if not (complete and text.startswith(opening) and text.endswith(between[-1])):
        raise UserError(
            f"The tokenizer's chat template changes or leaves out the answer in {_named(messages)}; "
            "use instructions with prompt: alpaca."
        )
    return Reply(text, tuple(answers))


def _named(messages: Sequence[Message]) -> str:
    return f"the chat that begins {textwrap.shorten(messages[0].content, 60, placeholder=' ...')!r}"


# --- tokens --------------------------------------------------------------------------------------------------------


class _Tokens(NamedTuple):
    """A tokenised text."""

    ids: list[int]
    encoding: Any
    """Its ``tokenizers.Encoding``, which knows characters; None from tokenizers written in Python."""


class _Turn(NamedTuple):
    """The tokens ``first`` to ``stop - 1`` of an answer; those up to ``closed - 1`` end it."""

    first: int
    stop: int
    closed: int


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[_Tokens]:
    # A template that writes the start-of-text token itself must not get a second one from the tokenizer.
    start = str(tokenizer.bos_token or "")
    found: dict[int, _Tokens] = {}
    for starts_itself in (False, True):
        places = [
            place for place, text in enumerate(texts) if (bool(start) and text.startswith(start)) is starts_itself
        ]
        if places:
            part = tokenizer([texts[place] for place in places], add_special_tokens=not starts_itself, verbose=False)
            encodings = getattr(part, "encodings", None) or [None] * len(places)
            found |= dict(zip(places, map(_Tokens, part["input_ids"], encodings), strict=True))
    return [found[place] for place in range(len(texts))]


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, tokens: _Tokens, reply: Reply, place: int) -> _Turn:
    """The tokens of one answer, its end not yet known; a token that holds any of its characters is in it."""
    start, end = reply.answers[place]
    ids, encoding = tokens
    if encoding is None:
        before, through = (_common_prefix(tokenizer, ids, reply.text[:edge]) for edge in (start, end))
        return _Turn(before, through, through)
    inside = range(start, end)
    first = _token_at(encoding, inside)
    if first is None:
        token = _token_at(encoding, reversed(range(start)))
        empty = 0 if token is None else token + 1
        return _Turn(empty, empty, empty)
    last = _token_at(encoding, reversed(inside))
    assert last is not None
    stop = last + 1
    # The bytes of one character may be several tokens, and the character points to the first of them.
    while stop < len(ids) and (span := encoding.token_to_chars(stop)) and span[0] < end:
        stop += 1
    return _Turn(first, stop, stop)


def _token_at(encoding: Any, characters: Iterable[int]) -> int | None:
    """The token of the first of some characters that has one: spaces before a word may have none."""
    tokens = (encoding.char_to_token(character) for character in characters)
    return next((token for token in tokens if token is not None), None)


def _common_prefix(tokenizer: PreTrainedTokenizerBase, ids: list[int], part: str) -> int:
    """How many of the first ids a text's beginning makes up, for tokenizers without character offsets."""
    of_part = _tokenise(tokenizer, [part])[0].ids
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(of_part, ids, strict=False)))


def _close(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], turns: Sequence[_Turn], closing: set[int]
) -> tuple[list[int], list[_Turn]]:
    """Let each turn end with the special token behind its answer, and the ids with the last turn.

    If nothing special follows the last answer, the end-of-text token takes its place.
    """
    closed = []
    for number, turn in enumerate(turns):
        last = number == len(turns) - 1
        until = len(ids) if last else turns[number + 1].first
        end = next((place for place in range(turn.stop, until) if ids[place] in closing), None)
        if end is not None:
            turn = turn._replace(closed=end + 1)
        elif last:
            if tokenizer.eos_token_id is None:
                raise UserError(
                    "The tokenizer has no end-of-text token (eos_token), so the model could not learn to stop."
                )
            ids = [*ids[: turn.stop], tokenizer.eos_token_id]
            turn = turn._replace(closed=len(ids))
        closed.append(turn)
    return ids[: closed[-1].closed] if closed else [], closed


def _label(ids: list[int], turns: Sequence[_Turn], loss_on: LossOn, max_length: int) -> Example:
    cut = len(ids) > max_length
    if loss_on == "all":
        ids = [*ids[: max_length - 1], ids[-1]] if cut else ids
        return Example(ids, list(ids), cut)
    # An answer counts if a token of it is left beside the token that ends the example.
    turns = [turn for turn in turns if turn.first < min(turn.stop, max_length - 1)]
    if cut:
        end = turns[-1].closed if turns else len(ids)
        ids = ids[:end] if end <= max_length else [*ids[: max_length - 1], ids[end - 1]]
    labels = [NO_LABEL] * len(ids)
    for first, _, closed in turns:
        labels[first:closed] = ids[first:closed]
    return Example(ids, labels, cut)


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
