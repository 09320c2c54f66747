"""Turns an instruction and its answer into token ids and labels, by the Alpaca prompt or the tokenizer's chat template.

The Alpaca wording is that of Taori et al., 2023 (https://github.com/tatsu-lab/stanford_alpaca). A label is the token
itself where the loss counts and -100 elsewhere; labels are not shifted (the model shifts them).
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from bishare.data.rows import Row
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


class Example(NamedTuple):
    """One tokenised example."""

    input_ids: list[int]
    labels: list[int]
    """As long as ``input_ids``; -100 where a token carries no loss, everywhere if no token of the answer fits."""
    cut: bool
    """Whether tokens were left out to fit the maximum length."""


class Reply(NamedTuple):
    """A prompt with its answer as one text; the answer is ``text[start:end]``."""

    text: str
    start: int
    end: int


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: Row, prompt: Prompt) -> str:
    """The text up to where the answer starts.

    Raises:
        UserError: If the chat template is asked for and the tokenizer has none.
    """
    if prompt == "alpaca":
        return (ALPACA_WITH_INPUT if row.input else ALPACA).format(instruction=row.instruction, input=row.input)
    return _chat(tokenizer, _question(row), add_generation_prompt=True)


def render_reply(tokenizer: PreTrainedTokenizerBase, row: Row, prompt: Prompt) -> Reply:
    """The whole text, and where the answer stands in it.

    Raises:
        UserError: If the chat template is asked for and the tokenizer has none, or it leaves the answer out.
    """
    before = render_prompt(tokenizer, row, prompt)
    if prompt == "alpaca":
        return Reply(before + row.output, len(before), len(before) + len(row.output))
    text = _chat(tokenizer, [*_question(row), {"role": "assistant", "content": row.output}])
    answer = row.output.strip()  # many templates strip what they are given
    # A template may open the answer in another way when it only prompts for it; then the answer's own text decides.
    start = len(before) if text.startswith(before) else text.rfind(answer)
    place = text.find(answer, start) if start >= 0 else -1
    if place < 0:
        raise UserError("The tokenizer's chat template changes or leaves out the answer; use prompt: alpaca.")
    return Reply(text, start, place + len(answer))


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, prompt: Prompt, loss_on: LossOn, max_length: int
) -> list[Example]:
    """Tokenise rows; each example ends with its end-of-text token, or the end of the answer's turn in a chat.

    A longer example keeps its first ``max_length - 1`` tokens and its end token. With ``loss_on="answer"`` the labels
    are the answer and the end token, or nothing if no token of the answer is left.

    Raises:
        UserError: If the tokenizer has no end-of-text token, or no chat template where one is needed.
    """
    replies = [render_reply(tokenizer, row, prompt) for row in rows]
    encodings = _tokenise(tokenizer, [reply.text for reply in replies])
    closing = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    examples = []
    for index, reply in enumerate(replies):
        first, stop = _answer_tokens(tokenizer, encodings, index, reply)
        ids = _close(tokenizer, encodings["input_ids"][index], stop, closing)
        examples.append(_label(ids, first, loss_on, max_length))
    return examples


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> dict[str, Any]:
    """Tokenise rendered prompts for generation: ``input_ids`` and ``attention_mask`` ``[b, n]``, padded on the left."""
    rows = [_without_end(tokenizer, ids) for ids in _tokenise(tokenizer, prompts)["input_ids"]]
    padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}


def _question(row: Row) -> list[dict[str, str]]:
    content = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return [{"role": "user", "content": content}]


def _chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool = False
) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("prompt is chat, but the tokenizer has no chat template; use prompt: alpaca or a chat model.")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert isinstance(text, str)
    return text


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Any:  # BatchEncoding
    # A template that writes the start-of-text token itself must not get a second one from the tokenizer.
    starts_itself = bool(tokenizer.bos_token) and texts[0].startswith(str(tokenizer.bos_token))
    return tokenizer(list(texts), add_special_tokens=not starts_itself, verbose=False)


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, encodings: Any, index: int, reply: Reply) -> tuple[int, int]:
    """First token of the answer, and the one after its last; a token that holds any of its characters is in it."""
    ids = encodings["input_ids"][index]
    if not tokenizer.is_fast:
        return _common_prefix(tokenizer, ids, reply, reply.start), _common_prefix(tokenizer, ids, reply, reply.end)
    inside = range(reply.start, reply.end)
    first = _token_at(encodings, index, inside)
    if first is None:
        before = _token_at(encodings, index, reversed(range(reply.start)))
        return (0, 0) if before is None else (before + 1, before + 1)
    last = _token_at(encodings, index, reversed(inside))
    assert last is not None
    stop = last + 1
    # The bytes of one character may be several tokens, and the character points to the first of them.
    while stop < len(ids) and (span := encodings.token_to_chars(index, stop)) and span.start < reply.end:
        stop += 1
    return first, stop


def _token_at(encodings: Any, index: int, characters: Iterable[int]) -> int | None:
    """The token of the first of some characters that has one: spaces before a word may have none."""
    tokens = (encodings.char_to_token(index, character) for character in characters)
    return next((token for token in tokens if token is not None), None)


def _common_prefix(tokenizer: PreTrainedTokenizerBase, ids: list[int], reply: Reply, end: int) -> int:
    """How many tokens of a reply its first ``end`` characters make up, for tokenizers without character offsets."""
    part = _tokenise(tokenizer, [reply.text[:end]])["input_ids"][0]
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(part, ids, strict=False)))


def _close(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: int, closing: set[int]) -> list[int]:
    """The ids up to the special token behind the answer, or with the end-of-text token if there is none."""
    for place in range(stop, len(ids)):
        if ids[place] in closing:
            return ids[: place + 1]
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no end-of-text token (eos_token), so the model could not learn to stop.")
    return [*ids[:stop], tokenizer.eos_token_id]


def _label(ids: list[int], first: int, loss_on: LossOn, max_length: int) -> Example:
    cut = len(ids) > max_length
    if cut:
        ids = [*ids[: max_length - 1], ids[-1]]
    if loss_on == "all":
        return Example(ids, list(ids), cut)
    if first >= len(ids) - 1:  # nothing is left between the prompt and the end token
        first = len(ids)
    return Example(ids, [NO_LABEL] * first + ids[first:], cut)


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
