"""Turns a row into token ids and labels.

A label is the token itself where the loss counts and -100 elsewhere. Labels are not shifted: the model shifts them.

Shapes: an example has n ids and n labels; prompts for generation are [b, n], padded on the left.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bishare.data.chats import TemplateText, end_of_turn
from bishare.data.prompts import Prompt, render_reply
from bishare.data.rows import AnyRow
from bishare.errors import UserError

LossOn = Literal["answer", "all"]

NO_LABEL = -100


class Example(NamedTuple):
    """One tokenised example."""

    input_ids: list[int]
    labels: list[int]
    """As long as ``input_ids``; -100 where a token carries no loss, everywhere if no token of an answer fits."""
    cut: bool
    """Whether tokens were left out to fit the maximum length."""
    joined: bool = False
    """Whether a token holds the end of a prompt and the start of its answer: generation has no such token."""
    num_rewritten: int = 0
    """Earlier answers of a chat that are read and not trained (see ``chats.py``)."""


class _Tokens(NamedTuple):
    """A tokenised text."""

    ids: list[int]
    encoding: Any
    """The ``tokenizers.Encoding``, which knows characters; None from tokenizers written in Python."""


class _Turn(NamedTuple):
    """The tokens ``first`` to ``stop - 1`` of an answer; the tokens ``stop`` to ``closed - 1`` end the answer."""

    first: int
    stop: int
    closed: int


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[AnyRow], *, prompt: Prompt, loss_on: LossOn, max_length: int
) -> list[Example]:
    """Tokenise rows; each example ends with its end-of-text token, or the end of the last answer's turn in a chat.

    A longer example keeps its first ``max_length`` tokens, without an end token and without a part of a character at
    the cut: a model must not learn to stop inside a sentence. Everything after the last answer that fits is left out.
    With ``loss_on="answer"`` the labels are the answers, each with its end token; there are no labels if no token of an
    answer is left. A plain text is all answer.

    Raises:
        UserError: If the tokenizer has no end-of-text token, or no chat template where a row needs the template.
    """
    replies = [render_reply(tokenizer, row, prompt) for row in rows]
    texts = [reply.text for reply in replies]
    closing = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    examples = []
    for reply, tokens in zip(replies, _tokenise(tokenizer, texts), strict=True):
        turns = [_answer_tokens(tokenizer, tokens, reply.text, answer) for answer in reply.answers]
        joined = any(
            start and _spans(tokens.encoding, turn.first, start)
            for turn, (start, _) in zip(turns, reply.answers, strict=True)
        )
        ids, turns = _close(tokenizer, tokens.ids, turns, closing)
        kept = len(ids) if len(ids) <= max_length else _whole_characters(tokens.encoding, max_length)
        example = _label(ids, turns, loss_on, kept)
        examples.append(example._replace(joined=joined, num_rewritten=reply.num_rewritten))
    return examples


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the end-of-text token, and what the chat template writes behind an answer."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    known = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    closing = tokenizer(end_of_turn(tokenizer), add_special_tokens=False)["input_ids"]
    found = next((token for token in closing if token in known), None)
    if found is not None and found not in ends:
        ends.append(found)
    return ends


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which generation stops: those that the base stops at, and those that training puts behind answers.

    A base may stop at its end-of-text token only, while its chat template closes an answer with another token.
    """
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = own if isinstance(own, list) else [] if own is None else [own]
    return list(dict.fromkeys([*ends, *end_tokens(tokenizer)]))


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> dict[str, Any]:
    """Tokenise rendered prompts for generation: ``input_ids`` and ``attention_mask`` ``[b, n]``, padded on the left."""
    rows = []
    for prompt, tokens in zip(prompts, _tokenise(tokenizer, prompts), strict=True):
        whole = isinstance(prompt, TemplateText)  # an end token in a template's text ends an earlier turn
        rows.append(tokens.ids if whole else _without_end(tokenizer, tokens.ids))
    padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[_Tokens]:
    """The tokens of texts in their order.

    A chat template writes all special tokens itself, as ``apply_chat_template`` takes for granted. In other texts the
    tokenizer adds its own, but no second start-of-text token.
    """
    start = str(tokenizer.bos_token or "")
    found: dict[int, _Tokens] = {}
    # Two calls at most rather than a call per text: a call tokenises its texts in parallel.
    for is_whole in (False, True):
        places = []
        for place, text in enumerate(texts):
            if (isinstance(text, TemplateText) or (bool(start) and text.startswith(start))) is is_whole:
                places.append(place)
        if places:
            part = tokenizer([texts[place] for place in places], add_special_tokens=not is_whole, verbose=False)
            encodings = getattr(part, "encodings", None) or [None] * len(places)
            found |= dict(zip(places, map(_Tokens, part["input_ids"], encodings), strict=True))
    return [found[place] for place in range(len(texts))]


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, tokens: _Tokens, text: str, answer: tuple[int, int]) -> _Turn:
    """The tokens of the answer ``text[start:end]``, its end not yet known.

    A token belongs to the answer if any of its characters does.
    """
    start, end = answer
    ids, encoding = tokens
    if encoding is None:  # no character offsets: compare with the tokens of the text's beginning
        first = _common_prefix(tokenizer, ids, text[:start])
        stop = _common_prefix(tokenizer, ids, text[:end])
        return _Turn(first, stop, stop)
    inside = range(start, end)
    found = _token_at(encoding, inside)
    if found is None:  # an empty answer stands behind the last token before it
        token = _token_at(encoding, reversed(range(start)))
        empty = 0 if token is None else token + 1
        return _Turn(empty, empty, empty)
    last = _token_at(encoding, reversed(inside))
    assert last is not None
    stop = last + 1
    # The bytes of one character may be several tokens, and the character points to the first of them.
    while stop < len(ids) and (span := encoding.token_to_chars(stop)) and span[0] < end:
        stop += 1
    return _Turn(found, stop, stop)


def _token_at(encoding: Any, characters: Iterable[int]) -> int | None:
    """The token of the first character that has a token: spaces before a word may have none."""
    for character in characters:
        token: int | None = encoding.char_to_token(character)
        if token is not None:
            return token
    return None


def _common_prefix(tokenizer: PreTrainedTokenizerBase, ids: list[int], beginning: str) -> int:
    """How many of the first ids the beginning of a text gives too, for tokenizers without character offsets."""
    count = 0
    for of_beginning, of_text in zip(_tokenise(tokenizer, [beginning])[0].ids, ids, strict=False):
        if of_beginning != of_text:
            break
        count += 1
    return count


def _close(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], turns: Sequence[_Turn], closing: set[int]
) -> tuple[list[int], list[_Turn]]:
    """Let each turn end with the special token behind its answer, and the ids with the last turn.

    If no special token follows the last answer, the end-of-text token is put behind the answer.
    """
    closed = []
    for number, turn in enumerate(turns):
        last = number == len(turns) - 1
        until = len(ids) if last else turns[number + 1].first
        end = next((place for place in range(turn.stop, until) if ids[place] in closing), None)
        if end is not None:
            turn = turn._replace(closed=end + 1)
        elif last:  # an earlier turn without an end token is left as the template writes the turn
            if tokenizer.eos_token_id is None:
                raise UserError(
                    "The tokenizer has no end-of-text token (eos_token), so the model could not learn to stop."
                )
            ids = [*ids[: turn.stop], tokenizer.eos_token_id]
            turn = turn._replace(closed=len(ids))
        closed.append(turn)
    return ids[: closed[-1].closed] if closed else [], closed


def _label(ids: list[int], turns: Sequence[_Turn], loss_on: LossOn, kept: int) -> Example:
    """The example with its first ``kept`` tokens."""
    cut = len(ids) > kept
    ids = ids[:kept]
    if loss_on == "all":
        return Example(ids, list(ids), cut)
    # An answer counts if a token of the answer is left.
    turns = [turn for turn in turns if turn.first < min(turn.stop, kept)]
    if cut and turns:  # a question behind the last answer that fits has no answer
        ids = ids[: turns[-1].closed]
    labels = [NO_LABEL] * len(ids)
    for first, _, closed in turns:
        labels[first:closed] = ids[first:closed]
    return Example(ids, labels, cut)


def _whole_characters(encoding: Any, length: int) -> int:
    """The largest number of tokens up to ``length`` that ends with a whole character."""
    if encoding is None:
        return length
    # The bytes of a character may be several tokens, all with the span of the character.
    while length and (after := encoding.token_to_chars(length)) and (last := encoding.token_to_chars(length - 1)):
        if last[1] <= after[0]:
            break
        length -= 1
    return length


def _spans(encoding: Any, token: int, character: int) -> bool:
    """Whether a token holds the character and the character before."""
    span = encoding.token_to_chars(token) if encoding is not None and token < len(encoding) else None
    return span is not None and span[0] < character < span[1]


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
