"""Caches the tokenised examples of large data on disk: the next run with the same rows and options starts at once.

Files lie in the folder ``bishare`` of Hugging Face's own cache (``HF_HOME``), and may be deleted at any time.
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

from bishare.data import chats, encoding, prompts
from bishare.data.encoding import Example
from bishare.data.rows import AnyRow
from bishare.files import atomic_file

MIN_ROWS = 5000
"""Fewer rows are not cached: their tokens take a second or two."""


def cached(
    rows: Sequence[AnyRow],
    tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any],
    encode: Callable[[], list[Example]],
) -> list[Example]:
    """The examples of the rows, from the disk if an earlier run left them there.

    Args:
        rows: Rows to tokenise.
        tokenizer: Tokenizer of the examples.
        options: Everything else that decides the examples.
        encode: Makes the examples.
    """
    # A slow tokenizer does not give its whole vocabulary, so a change of the vocabulary would go unseen.
    if len(rows) < MIN_ROWS or not tokenizer.is_fast:
        return encode()
    path = Path(constants.HF_HOME) / "bishare" / f"{fingerprint(rows, tokenizer, options)}.npz"
    with suppress(OSError, EOFError, ValueError, KeyError, BadZipFile):  # not there, or damaged
        return _load(path)
    examples = encode()
    with suppress(OSError):  # a disk that is full or may not be written: the next run tokenises again
        _save(path, examples)
    return examples


def fingerprint(rows: Sequence[AnyRow], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> str:
    """The name of a cached result, which changes with the rows, the tokenizer, the options and our own code."""
    digest = hashlib.sha256()
    for module in (chats, prompts, encoding):
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
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
            joined=np.array([example.joined for example in examples]),
            num_rewritten=np.array([example.num_rewritten for example in examples]),
            input_ids=np.concatenate([np.array(example.input_ids, dtype=np.int32) for example in examples]),
            labels=np.concatenate([np.array(example.labels, dtype=np.int32) for example in examples]),
        )


def _load(path: Path) -> list[Example]:
    with np.load(path) as file:
        ends = np.cumsum(file["lengths"])[:-1]
        ids, labels = (np.split(file[name], ends) for name in ("input_ids", "labels"))
        counts = (file[name].tolist() for name in ("cut", "joined", "num_rewritten"))
        return list(map(Example, map(_ints, ids), map(_ints, labels), *counts))


def _ints(values: Any) -> list[int]:
    return list(values.tolist())
