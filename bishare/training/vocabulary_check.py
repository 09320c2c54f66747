"""Checks that the base has an embedding for every token of the data, before anything is trained.

Tokens are added to a tokenizer more easily than to a model. On a GPU such a token ends in an assertion on the device,
which names neither the token nor the data.
"""

from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bishare.data.examples import Examples
from bishare.data.step_data import StepData
from bishare.errors import UserError


class VocabularyCheck(Callback):
    """Makes the check before the first batch; ``BiShareModule`` brings the callback along."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        embedding = getattr(pl_module, "model").get_input_embeddings()  # noqa: B009  # any module that brings this
        num_embeddings = getattr(embedding, "num_embeddings", None)
        if isinstance(data, StepData) and num_embeddings is not None:
            check_vocabulary(data, num_embeddings)


def check_vocabulary(data: StepData, num_embeddings: int) -> None:
    """Compare the tokens of the training and validation examples with the size of the embedding.

    Args:
        data: After ``setup``; of a stream, only the sample from its beginning is there to be checked.
        num_embeddings: Rows of the base's input embedding.

    Raises:
        UserError: A token has no embedding; the message names the token.
    """
    for examples in data.loaded_examples():
        if (token := largest_token(examples)) >= num_embeddings:
            raise UserError(
                f"the token {name_of(data.tokenizer, token)!r} of the data has id {token:,}, and the base has "
                f"embeddings for {num_embeddings:,} tokens; use a tokenizer without added tokens, or a base with a "
                "larger embedding."
            )


def largest_token(examples: Examples) -> int:
    """The largest token id of some examples."""
    return int(np.max(examples.input_ids, initial=-1))


def name_of(tokenizer: PreTrainedTokenizerBase, token: int) -> Any:
    """The token as the tokenizer writes it."""
    return tokenizer.convert_ids_to_tokens(token)
