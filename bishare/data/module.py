"""From rows of text to batches: what the data modules have in common."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are a package of their own

from bishare.data.cache import cached
from bishare.data.examples import Examples, count_labels
from bishare.data.mixture import Mixture
from bishare.data.prompts import Example, LossOn, Prompt, encode, encode_prompts, render_prompt
from bishare.data.rows import AnyRow, Row, Text, answer_of
from bishare.data.steps import EvaluationSampler, StepLoader, StepSampler, choose_accumulation
from bishare.errors import UserError

ROWS_PER_CALL = 1000
"""Rows that the tokenizer gets at once: many enough for its threads, few enough for a smooth progress bar."""


@dataclass(kw_only=True, eq=False)
class PromptData(LightningDataModule, ABC):
    """Prompts with answers, tokenised in memory, dealt into optimizer steps whose size does not depend on the devices.

    After ``setup`` there are ``tokenizer``, ``accumulation`` (also set on the trainer), ``steps_per_epoch``, and the
    numbers of examples dropped (``num_dropped``) and cut (``num_cut``).
    """

    base: str = ""
    """Where the tokenizer comes from: the base model's hub name, folder, GGUF file or ``package:NAME``."""
    batch_size: int = 64
    """Examples per optimizer step, on all devices together."""
    tokens_per_micro_batch: int = 1024
    """About how many tokens a device holds at once; it decides how many micro-batches make up a step."""
    packing: bool = True
    """Put the examples of a micro-batch end to end in one row, each attending to itself only, instead of padding them;
    models whose attention cannot be kept apart get padded rows, sorted by length, all the same."""
    max_length: int = 256
    """Tokens of the longest example; longer answers are cut and keep their end-of-text token."""
    prompt: Prompt = "alpaca"
    """Wording of an instruction: ``alpaca`` or ``chat``, the chat template of the tokenizer."""
    loss_on: LossOn = "answer"
    """Whether the loss counts the tokens of the answers (each of a chat, with its end token) or all of them."""
    num_validation: int | None = None
    """Rows held out for validation: by default 200, or a tenth of the rows if that is fewer."""
    max_examples: int | None = None
    """Rows to train on, drawn by the seed; all by default."""
    seed: int = 0
    """Seed of the split and of the order of the examples."""
    num_workers: int = 0
    """Processes that prepare batches; the examples are in memory, so that none is needed as a rule."""
    tokenizer: Any = field(default=None, repr=False)
    """A Hugging Face tokenizer to use instead of the base model's (from Python)."""

    def __post_init__(self) -> None:
        super().__init__()
        for name in ("batch_size", "tokens_per_micro_batch", "max_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        if self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; an answer and its end token need at least 2.")
        for name in ("num_validation", "num_workers", "seed"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"{name} is {value}; it must not be negative.")
        self.accumulation = 1
        self.steps_per_epoch = 0
        self._split: tuple[list[AnyRow], list[AnyRow]] | None = None
        self._train: Examples | None = None
        self._mixture: Mixture | None = None
        self._steps: StepSampler | None = None
        self._validation: Examples | None = None
        self._validation_rows: list[AnyRow] = []
        self.num_dropped = self.num_cut = 0

    @abstractmethod
    def read(self) -> list[AnyRow]:
        """All rows, in the same order on every rank."""

    @property
    def examples(self) -> Examples:
        """The tokenised training examples; of a stream the first ones."""
        assert self._train is not None, "setup('fit') has not run"
        return self._train

    def mixture(self, rows: Sequence[AnyRow]) -> Mixture | None:
        """Which of the rows to train on an epoch holds; None if it holds each once."""
        return None

    def prepare_data(self) -> None:
        """Fill the download caches, on one process of each machine."""
        self._load_tokenizer()

    def setup(self, stage: str) -> None:
        """Read, split and tokenise; every rank does the same work on its own and writes nothing.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; the training rows are tokenised for ``fit`` only.

        Raises:
            UserError: If the rows cannot be read, no example is left, or the batch cannot be shared by the devices.
        """
        self._load_tokenizer()
        if self._split is None:
            self._split = self._split_rows(self.read())
            self._validation_rows, self._validation = self._encode(self._split[1], "validation")
            if self._validation is not None and len(self._validation) < self._world_size:
                raise UserError(
                    f"{len(self._validation)} validation examples are fewer than the {self._world_size} devices; "
                    "raise num_validation, or set it to 0."
                )
        if stage == "fit":
            if self._train is None:
                rows, self._train = self._encode(self._split[0], "training")
                self._mixture = self.mixture(rows)
            assert self._train is not None, "the split leaves rows to train on"
            self._steps = self._plan_steps(self._train)
            self._report(self._train)

    def render_prompt(self, instruction: str, input: str = "") -> str:
        """The text that the model reads before it answers."""
        self._load_tokenizer()
        return render_prompt(self.tokenizer, Row(instruction, input, ""), self.prompt)

    def train_dataloader(self) -> StepLoader:
        """This rank's micro-batches; the loader goes on inside an epoch after a resume."""
        assert self._steps is not None, "setup('fit') has not run"
        return StepLoader(self.examples, self._steps, num_workers=self._workers())

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """This rank's share of the held-out examples; nothing if none are held out."""
        if self._validation is None:
            return []
        sampler = EvaluationSampler(
            self._validation.lengths,
            tokens_per_pack=self.tokens_per_micro_batch,
            world_size=self._world_size,
            rank=self._rank,
        )
        return DataLoader(
            self._validation,
            batch_size=None,
            sampler=sampler,
            num_workers=self._workers(),
            generator=torch.Generator(),  # evaluation leaves torch's global stream alone
        )

    def test_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """The held-out examples, as for validation: there is no third split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The held-out prompts, padded on the left, with their reference answers.

        Raises:
            UserError: If no rows are held out, or they are plain texts.
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

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _workers(self) -> int:
        # Lightning asks for more workers than none; here there is nothing for them to do.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        return self.num_workers

    def _load_tokenizer(self) -> None:
        if self.tokenizer is None:
            from bishare.bases import load_tokenizer  # the only need of base models, and not for a given tokenizer

            self.tokenizer = load_tokenizer(self.base)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def _split_rows(self, rows: list[AnyRow]) -> tuple[list[AnyRow], list[AnyRow]]:
        """Training and validation rows; the latter do not depend on ``max_examples``."""
        num_validation = min(200, len(rows) // 10) if self.num_validation is None else self.num_validation
        if num_validation >= len(rows):
            raise UserError(
                f"num_validation is {num_validation}, but there are {len(rows):,} rows in all; leave some to train on."
            )
        order = [rows[index] for index in np.random.default_rng(self.seed).permutation(len(rows))]
        train = order[num_validation:]
        return train[: self.max_examples], order[:num_validation]

    def _encode(self, rows: list[AnyRow], what: str) -> tuple[list[AnyRow], Examples | None]:
        """The rows that have labels, and their tokens; None if there are no rows."""
        if not rows:
            return [], None
        options = {"prompt": self.prompt, "loss_on": self.loss_on, "max_length": self.max_length}
        examples = cached(rows, self.tokenizer, options, lambda: list(self._tokens(rows, what)))
        pairs = [(row, example) for row, example in zip(rows, examples, strict=True) if count_labels(example)]
        if not pairs:
            raise UserError(
                f"None of the {len(rows):,} {what} examples has a token of its answer within max_length "
                f"{self.max_length}; raise max_length."
            )
        kept, examples = map(list, zip(*pairs, strict=True))
        self.num_dropped += len(rows) - len(kept)
        self.num_cut += sum(example.cut for example in examples)
        return kept, Examples(examples, pad_token_id=self.tokenizer.pad_token_id, packing=self.packing)

    def _tokens(self, rows: list[AnyRow], what: str) -> Iterator[Example]:
        with tqdm(total=len(rows), desc=f"Tokenising {what} rows", delay=2, disable=self._rank > 0, leave=False) as bar:
            for start in range(0, len(rows), ROWS_PER_CALL):
                chunk = rows[start : start + ROWS_PER_CALL]
                yield from encode(
                    self.tokenizer, chunk, prompt=self.prompt, loss_on=self.loss_on, max_length=self.max_length
                )
                bar.update(len(chunk))

    def _plan_steps(self, train: Examples) -> StepSampler | None:
        """Cut epochs into steps."""
        self._choose_accumulation(train.lengths)
        steps = StepSampler(
            train.lengths,
            train.num_labels,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            world_size=self._world_size,
            rank=self._rank,
            seed=self.seed,
            mixture=self._mixture,
            padded=not self.packing,
        )
        self.steps_per_epoch = steps.num_steps
        return steps

    def _choose_accumulation(self, lengths: npt.NDArray[np.int64]) -> None:
        """Choose the accumulation for examples of such lengths, and hand it to the trainer."""
        before = self.accumulation
        self.accumulation = choose_accumulation(
            lengths,
            batch_size=self.batch_size,
            tokens_per_micro_batch=self.tokens_per_micro_batch,
            world_size=self._world_size,
        )
        if self.trainer:
            if getattr(self.trainer, "overfit_batches", 0):  # set by name in Trainer, so that mypy does not see it
                raise UserError("trainer.overfit_batches would replace the optimizer steps; use data.max_examples.")
            given = self.trainer.accumulate_grad_batches
            if given not in (1, before, self.accumulation):
                raise UserError(
                    f"trainer.accumulate_grad_batches is {given}, but data.batch_size and data.tokens_per_micro_batch "
                    "decide it; leave it out."
                )
            self.trainer.accumulate_grad_batches = self.accumulation

    def _report(self, train: Examples) -> None:
        num_validation = len(self._validation) if self._validation is not None else 0
        rank_zero_info(
            f"Data: {len(train) + num_validation + self.num_dropped:,} rows give {len(train):,} training and "
            f"{num_validation:,} validation examples ({self.num_dropped:,} dropped, no token of the answer fits; "
            f"{self.num_cut:,} cut to {self.max_length} tokens), {train.lengths.mean():.0f} tokens on average, "
            f"{train.num_labels.sum() / train.lengths.sum():.0%} of them with a label; {self.steps_per_epoch:,} steps "
            f"per epoch of {self.batch_size} examples; {self.accumulation} micro-batches per step and device, devices: "
            f"{self._world_size}."
        )
