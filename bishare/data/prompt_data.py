"""From rows of text to examples: the common part of the data modules of language models."""

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are a package of their own

from bishare.data.cache import cached
from bishare.data.chats import read_template
from bishare.data.encoding import Example, LossOn, encode, encode_prompts
from bishare.data.examples import Examples, count_labels
from bishare.data.mixture import Mixture
from bishare.data.prompts import Prompt, render_prompt
from bishare.data.rows import AnyRow, Row, Text, answer_of, is_answered
from bishare.data.step_data import StepData
from bishare.data.step_sampler import StepLoader
from bishare.errors import UserError
from bishare.models.packed_attention import can_pack

ROWS_PER_CALL = 1000
"""Rows per call of the tokenizer: enough for its threads, and few enough for a smooth progress bar."""


@dataclass(kw_only=True, eq=False)
class PromptData(StepData):
    """Prompts with answers; longer answers are cut and keep their end-of-text token."""

    packing: bool = True
    """Put the examples of a micro-batch end to end in one row, each attending to itself only, instead of padding them;
    a model whose attention cannot keep examples apart gets padded rows of similar lengths."""
    prompt: Prompt = "alpaca"
    """Wording of an instruction: ``alpaca`` or ``chat``, the chat template of the tokenizer."""
    chat_template: str | None = None
    """Chat template to use instead of the tokenizer's default: a file with a Jinja template, or the name of a template
    of a tokenizer that has several."""
    loss_on: LossOn = "answer"
    """Tokens with a loss: those of every answer and its end token (``answer``), or all tokens (``all``)."""
    num_validation: int | None = None
    """Rows held out for validation; by default 200 or a tenth of the rows, whichever is fewer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_validation is not None and self.num_validation < 0:
            raise UserError(f"num_validation is {self.num_validation}; it must not be negative.")
        self.num_joined = self.num_rewritten = self.num_unanswered = 0
        self._train_rows: list[AnyRow] = []
        self._validation_rows: list[AnyRow] = []

    @abstractmethod
    def read(self) -> list[AnyRow]:
        """All rows, in the same order on every rank."""

    def mixture(self, rows: Sequence[AnyRow]) -> Mixture | None:
        """The mixture of the training rows; None if an epoch holds each row once."""
        return None

    def load_validation(self) -> Examples | None:
        """The held-out rows with a label; rows without a label are left out."""
        self._train_rows, held_out = self._split_rows(self._answered(self.read()))
        self._validation_rows, examples = self._encode(held_out, "validation")
        return examples

    def load_training(self) -> Examples:
        """All rows with a label that are not held out."""
        rows, examples = self._encode(self._train_rows, "training")
        assert examples is not None, "the split leaves rows to train on"
        self._mixture = self.mixture(rows)
        return examples

    def train_dataloader(self) -> StepLoader:
        """This rank's micro-batches; after a resume, the loader goes on inside an epoch."""
        self.examples.packing = self._is_packed
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """This rank's share of the held-out examples; an empty list without any."""
        if self._validation is not None:
            self._validation.packing = self._is_packed
        return super().val_dataloader()

    @property
    def _is_packed(self) -> bool:
        """Whether the option ``packing`` is set and the attention of the run's model keeps documents apart."""
        model = getattr(getattr(self.trainer, "lightning_module", None), "model", None)
        return self.packing and (model is None or can_pack(model))

    def render_prompt(self, instruction: str, input: str = "") -> str:
        """The text before the answer."""
        self._load_tokenizer()
        return render_prompt(self.tokenizer, Row(instruction, input, ""), self.prompt)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The held-out prompts, padded on the left, with their reference answers.

        Raises:
            UserError: If no rows are held out, or all held-out rows are plain texts.
        """
        if not self._validation_rows:
            raise UserError("num_validation is 0, so there are no held-out prompts to answer; set it to at least 1.")
        rows = [row for row in self._validation_rows if not isinstance(row, Text)]
        if not rows:
            raise UserError("The held-out rows are plain texts, which have no prompt to answer.")
        return DataLoader(
            rows,  # type: ignore[arg-type]  # any sequence is a map-style data set
            batch_size=max(1, self.tokens_per_micro_batch // self.max_length),
            collate_fn=self._prompt_batch,
            generator=torch.Generator(),
        )

    def _prompt_batch(self, rows: Sequence[AnyRow]) -> dict[str, Any]:
        prompts = [render_prompt(self.tokenizer, row, self.prompt) for row in rows]
        return {
            **encode_prompts(self.tokenizer, prompts),
            "prompt": prompts,
            "reference": [answer_of(row) for row in rows],
        }

    def _load_tokenizer(self) -> None:
        is_new = self.tokenizer is None
        super()._load_tokenizer()
        if is_new and self.chat_template is not None:
            self.tokenizer = copy.copy(self.tokenizer)  # the base's is shared
            self.tokenizer.chat_template = read_template(self.chat_template, self.tokenizer)

    def _answered(self, rows: list[AnyRow]) -> list[AnyRow]:
        """The rows with an answer to learn; the others are counted.

        Raises:
            UserError: If no row has an answer.
        """
        answered = list(filter(is_answered, rows))
        self.num_unanswered += len(rows) - len(answered)
        if len(answered) < len(rows):
            first = next(number for number, row in enumerate(rows, start=1) if not is_answered(row))
            message = (
                f"{len(rows) - len(answered):,} of {len(rows):,} rows have no answer, or an empty one (the first: row "
                f"{first:,})"
            )
            if not answered:
                raise UserError(f"{message}; give each row an answer to learn.")
            rank_zero_info(f"Data: {message}; they are left out.")
        return answered

    def _split_rows(self, rows: list[AnyRow]) -> tuple[list[AnyRow], list[AnyRow]]:
        """Training and validation rows; the validation rows do not depend on ``max_examples``."""
        num_validation = self.num_validation
        if num_validation is None:
            num_validation = min(200, len(rows) // 10)
        if num_validation >= len(rows):
            raise UserError(
                f"num_validation is {num_validation}, but there are {len(rows):,} rows with an answer in all; leave "
                "some to train on."
            )
        # Validation rows first: more or fewer training rows leave them alone, so that losses stay comparable.
        order = [rows[index] for index in np.random.default_rng(self.seed).permutation(len(rows))]
        train = order[num_validation:]
        return train[: self.max_examples], order[:num_validation]

    def _encode(self, rows: list[AnyRow], what: str) -> tuple[list[AnyRow], Examples | None]:
        """The rows with labels, and their tokens; None if there are no rows."""
        if not rows:
            return [], None
        # The tokenizer's template is a part of the key already.
        options = {"prompt": self.prompt, "loss_on": self.loss_on, "max_length": self.max_length}
        encoded = cached(rows, self.tokenizer, options, lambda: list(self._tokens(rows, what)))
        kept, examples = [], []
        # A row without a label would add nothing to the loss, but take room in a batch.
        for row, example in zip(rows, encoded, strict=True):
            if count_labels(example):
                kept.append(row)
                examples.append(example)
        if not kept:
            raise UserError(
                f"None of the {len(rows):,} {what} examples has a token of its answer within max_length "
                f"{self.max_length}; raise max_length."
            )
        self.num_dropped += len(rows) - len(kept)
        for example in examples:
            self.num_cut += example.cut
            self.num_joined += example.joined
            self.num_rewritten += example.num_rewritten
        return kept, Examples(examples, pad_token_id=self.tokenizer.pad_token_id, packing=self.packing)

    def _tokens(self, rows: list[AnyRow], what: str) -> Iterator[Example]:
        with tqdm(total=len(rows), desc=f"Tokenising {what} rows", delay=2, disable=self._rank > 0, leave=False) as bar:
            for start in range(0, len(rows), ROWS_PER_CALL):
                chunk = rows[start : start + ROWS_PER_CALL]
                yield from encode(
                    self.tokenizer, chunk, prompt=self.prompt, loss_on=self.loss_on, max_length=self.max_length
                )
                bar.update(len(chunk))

    def report(self, train: Examples) -> None:
        """Log the numbers of rows, examples and tokens, and the steps of an epoch."""
        num_validation = len(self._validation) if self._validation is not None else 0
        rank_zero_info(
            f"Data: {len(train) + num_validation + self.num_dropped:,} rows give {len(train):,} training and "
            f"{num_validation:,} validation examples ({self.num_dropped:,} dropped, no token of the answer fits; "
            f"{self.num_cut:,} cut to {self.max_length} tokens), {train.lengths.mean():.0f} tokens on average, "
            f"{train.num_labels.sum() / train.lengths.sum():.0%} of them with a label; {self.steps_per_epoch:,} steps "
            f"per epoch of {self.batch_size} examples; {self.accumulation} micro-batches per step and device, devices: "
            f"{self._world_size}."
        )
        for line in self.remarks():
            rank_zero_info(line)

    def remarks(self) -> list[str]:
        """What a user would not expect of the examples, a line each."""
        lines = []
        if self.num_joined:
            lines.append(
                f"{self.num_joined:,} examples have a token that holds the end of the prompt and the start of the "
                "answer, which generation never sees. The usual reason is a prompt that ends with a space."
            )
        if self.num_rewritten:
            lines.append(
                f"{self.num_rewritten:,} earlier answers of chats are read and not trained: the chat template writes "
                "them otherwise than a last answer (without thoughts, as a rule)."
            )
        return lines
