"""Text for ``analyze``: rows of a file or the hub as documents, and the loss on the answers."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bishare.data.encoding import encode
from bishare.data.examples import Examples, Pack, count_labels
from bishare.data.prompts import Prompt
from bishare.data.row_files import read_rows
from bishare.errors import UserError
from bishare.training.loss import token_loss

TOKENS_PER_PACK = 1000


def read_text(
    source: str, tokenizer: PreTrainedTokenizerBase, *, num_rows: int, max_length: int, prompt: Prompt
) -> Examples:
    """Tokenise the first rows of a source as for training; rows without a token of the answer are left out.

    Args:
        source: A file, a folder or a data set's name on the hub, in any of the formats of training data.
        tokenizer: The base model's.
        num_rows: The most rows to read.
        max_length: The most tokens of a row.
        prompt: Wording of an instruction.

    Raises:
        UserError: As ``read_rows``; or no row has a token of the answer within ``max_length``.
    """
    rows = read_rows(source)[:num_rows]
    encoded = encode(tokenizer, rows, prompt=prompt, loss_on="answer", max_length=max_length)
    examples = [example for example in encoded if count_labels(example)]
    if not examples:
        raise UserError(
            f"none of the first {len(rows)} rows of {source} has a token of its answer within max_length {max_length}; "
            "raise it."
        )
    return Examples(examples, pad_token_id=cast(int, tokenizer.pad_token_id), packing=True)


def documents(examples: Examples) -> Iterator[Tensor]:
    """The tokens [n] of every example."""
    for start, end in zip(examples.offsets, examples.offsets[1:], strict=False):
        yield torch.from_numpy(examples.input_ids[start:end]).long()


@torch.no_grad()
def loss_on(model: PreTrainedModel, examples: Examples) -> float:
    """Mean cross-entropy of the answers' tokens, in nats."""
    total, num_labels = 0.0, 0
    for pack in _packs(examples):
        batch = {name: value.to(model.device) for name, value in examples[pack].items()}
        loss = token_loss(model, batch)
        total, num_labels = total + loss.sum.item(), num_labels + int(loss.num_labels)
    return total / num_labels


def _packs(examples: Examples) -> Iterator[Pack]:
    """All examples, in packs of about ``TOKENS_PER_PACK`` tokens."""
    indices: list[int] = []
    num_tokens = 0
    for index, length in enumerate(examples.lengths.tolist()):
        if indices and num_tokens + length > TOKENS_PER_PACK:
            yield Pack(tuple(indices))
            indices, num_tokens = [], 0
        indices.append(index)
        num_tokens += length
    yield Pack(tuple(indices))
