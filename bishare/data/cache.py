"""Keeps tokenised examples of large data on disk, so that the next run with the same rows and options starts at once.

Files lie in ``bishare`` under Hugging Face's own cache (``HF_HOME``), and may be deleted at any time.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from bishare.data import prompts
from bishare.data.prompts import Example
from bishare.data.rows import AnyRow
from bishare.files import atomic_file

LEAST_ROWS = 5000
"""Fewer rows are tokenised in a second or two."""


def cached(
    rows: Sequence[AnyRow],
    tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any],
    encode: Callable[[], list[Example]],
) -> list[Example]:
    """The examples that the rows become, from the disk if they have been there.

    Args:
        rows: What to tokenise.
        tokenizer: By what.
        options: All else that the result depends on.
        encode: Makes the examples.
    """
    if len(rows) < LEAST_ROWS or not tokenizer.is_fast:  # the vocabulary of others cannot be looked into
        return encode()
    path = Path(constants.HF_HOME) / "bishare" / f"{fingerprint(rows, tokenizer, options)}.npz"
    with suppress(OSError, EOFError, ValueError, KeyError, BadZipFile):  # not there, or damaged
        return _load(path)
    examples = encode()
    with suppress(OSError):  # a disk that is full or may not be written: the next run tokenises again
        _save(path, examples)
    return examples


def fingerprint(rows: Sequence[AnyRow], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> str:
    """A name for a result: it changes with the rows, the tokenizer, the options and our own code."""
    digest = hashlib.sha256(Path(prompts.__file__).read_bytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    template, special = getattr(tokenizer, "chat_template", None), tokenizer.special_tokens_map
    digest.update(repr((template, sorted(special.items(), key=str), sorted(options.items()))).encode())
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _save(path: Path, examples: Sequence[Example]) -> None:
    with atomic_file(path) as file:  # several processes may write the same examples; the last file stays
        np.savez(
            file,
            lengths=np.array([len(example.input_ids) for example in examples]),
            cut=np.array([example.cut for example in examples]),
            input_ids=np.concatenate([np.array(example.input_ids, dtype=np.int32) for example in examples]),
            labels=np.concatenate([np.array(example.labels, dtype=np.int32) for example in examples]),
        )


def _load(path: Path) -> list[Example]:
    with np.load(path) as file:
        ends = np.cumsum(file["lengths"])[:-1]
        ids, labels = (np.split(file[name], ends) for name in ("input_ids", "labels"))
        return [Example(*row) for row in zip(map(_ints, ids), map(_ints, labels), file["cut"].tolist(), strict=True)]


def _ints(values: Any) -> list[int]:
    return list(values.tolist())
