"""The uses of a trained adapter, decided by the adapter's file before a base model is loaded.

An adapter trained to classify comes with a head. Most uses have no place for a head.
``docs/compatibility.md`` is written from the same table (``make docs``).
"""

from pathlib import Path
from typing import Literal

from bishare.adapters.checkpoint import AdapterFile
from bishare.errors import UserError

Use = Literal["export", "evaluate", "analyze --data", "AdapterPool"]

FOR_LANGUAGE_MODELS: dict[Use, str] = {
    "export": "only language models are exported",
    "evaluate": "the questions of a suite are for language models",
    "analyze --data": "data is for language models, leave out --data",
    "AdapterPool": "a pool serves language models",
}
"""Why a use has no place for a classification head; unlisted uses accept a head."""


def check_use(file: AdapterFile, folder: str | Path, use: Use) -> None:
    """Refuse an adapter with a classification head where a language model is needed.

    Args:
        file: The adapter.
        folder: Where the adapter lies, for the message.
        use: The intended use.

    Raises:
        UserError: The adapter comes with a head.
    """
    if file.head:
        raise UserError(f"{folder} comes with a classification head; {FOR_LANGUAGE_MODELS[use]}.")
