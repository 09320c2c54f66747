"""From tokenised examples to the batches of optimizer steps: the common part of all data modules."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from bishare.data.examples import Examples
from bishare.data.mixture import Mixture
from bishare.data.step_sampler import EvaluationSampler, StepLoader, StepSampler, choose_accumulation
from bishare.errors import UserError


@dataclass(kw_only=True, eq=False)
class StepData(LightningDataModule, ABC):
    """Examples in memory and their optimizer steps, whose size does not depend on the devices.

    ``setup`` sets ``tokenizer``, ``accumulation`` (also on the trainer), ``steps_per_epoch``, and the numbers of
    examples dropped (``num_dropped``) and cut (``num_cut``).
    """

    base: str = ""
    """Source of the tokenizer: the base model's hub name, folder, GGUF file or ``package:NAME``."""
    batch_size: int = 64
    """Examples per optimizer step, on all devices together."""
    tokens_per_micro_batch: int = 1024
    """Tokens that a device holds at a time, on average; decides the number of micro-batches in a step."""
    max_length: int = 256
    """Tokens of the longest example; longer examples are cut."""
    max_examples: int | None = None
    """Rows to train on, drawn by the seed; all by default."""
    seed: int = 0
    """Seed of the split and of the order of the examples."""
    num_workers: int = 0
    """Processes that prepare batches; 0 is enough as a rule, since the examples are in memory."""
    tokenizer: Any = field(default=None, repr=False)
    """A Hugging Face tokenizer to use instead of the base model's (from Python)."""

    def __post_init__(self) -> None:
        super().__init__()
        for name in ("batch_size", "tokens_per_micro_batch", "max_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        if self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; an example needs at least 2 tokens.")
        for name in ("num_workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must not be negative.")
        self.accumulation = 1
        self.steps_per_epoch = 0
        self.num_dropped = self.num_cut = 0
        self._is_read = False
        self._train: Examples | None = None
        self._validation: Examples | None = None
        self._mixture: Mixture | None = None
        self._steps: StepSampler | None = None

    @abstractmethod
    def load_validation(self) -> Examples | None:
        """The tokenised validation examples, the same on every rank; None without validation."""

    @abstractmethod
    def load_training(self) -> Examples:
        """The tokenised training examples, in the same order on every rank; called after ``load_validation``."""

    @abstractmethod
    def report(self, train: Examples) -> None:
        """Log a summary of the examples and the steps."""

    @property
    def examples(self) -> Examples:
        """The tokenised training examples; for a stream only a sample from its beginning."""
        assert self._train is not None, "setup('fit') has not run"
        return self._train

    def loaded_examples(self) -> list[Examples]:
        """The tokenised training and validation examples that ``setup`` has loaded."""
        return [examples for examples in (self._train, self._validation) if examples is not None]

    def prepare_data(self) -> None:
        """Fill the download caches, on one process of each machine."""
        self._load_tokenizer()

    def setup(self, stage: str) -> None:
        """Read and tokenise; every rank does the same work on its own and writes nothing.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; the training rows are tokenised for ``fit`` only.

        Raises:
            UserError: If the rows cannot be read, no example is left, or the devices cannot share the batch.
        """
        self._load_tokenizer()
        if not self._is_read:  # Lightning calls setup for each stage
            self._validation, self._is_read = self.load_validation(), True
            if self._validation is not None and len(self._validation) < self._world_size:
                raise UserError(
                    f"{len(self._validation)} validation examples are fewer than the {self._world_size} devices; "
                    "raise num_validation, or set it to 0."
                )
        if stage == "fit":
            if self._train is None:
                self._train = self.load_training()
            self._steps = self._plan_steps(self._train)
            self.report(self._train)

    def train_dataloader(self) -> StepLoader:
        """This rank's micro-batches; after a resume, the loader goes on inside an epoch."""
        assert self._steps is not None, "setup('fit') has not run"
        return StepLoader(self.examples, self._steps, num_workers=self._workers())

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """This rank's share of the held-out examples; an empty list without any."""
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

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _workers(self) -> int:
        # Lightning asks for more workers than 0; with all examples in memory, workers would have little to do.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        return self.num_workers

    def _load_tokenizer(self) -> None:
        if self.tokenizer is None:
            # Imported here: a given tokenizer needs none of the code that loads base models.
            from bishare.models.loading import load_tokenizer

            self.tokenizer = load_tokenizer(self.base)
        # Padding is masked and carries no label, so that any token will do.
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def _plan_steps(self, train: Examples) -> StepSampler | None:
        """Cut epochs into steps."""
        self._choose_accumulation(train.lengths)
        steps = StepSampler(
            train.num_labels,
            train.make_packs,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            world_size=self._world_size,
            rank=self._rank,
            seed=self.seed,
            mixture=self._mixture,
        )
        self.steps_per_epoch = steps.num_steps
        return steps

    def _choose_accumulation(self, lengths: npt.NDArray[np.int64]) -> None:
        """Choose the accumulation for examples of these lengths [num_examples], and set it on the trainer."""
        before = self.accumulation
        self.accumulation = choose_accumulation(
            lengths,
            batch_size=self.batch_size,
            tokens_per_micro_batch=self.tokens_per_micro_batch,
            world_size=self._world_size,
        )
        if self.trainer:
            if getattr(self.trainer, "overfit_batches", 0):  # Trainer sets the attribute by name, unseen by mypy
                raise UserError("trainer.overfit_batches would replace the optimizer steps; use data.max_examples.")
            given = self.trainer.accumulate_grad_batches
            # 1 is the trainer's default; ``before`` was set here in an earlier setup.
            if given not in (1, before, self.accumulation):
                raise UserError(
                    f"trainer.accumulate_grad_batches is {given}, but data.batch_size and data.tokens_per_micro_batch "
                    "decide it; leave it out."
                )
            self.trainer.accumulate_grad_batches = self.accumulation
