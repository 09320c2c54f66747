"""Training on more rows than memory holds: rows are read, tokenised and packed step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from bishare.data.encoding import Example, encode
from bishare.data.examples import Examples, Pack, count_labels
from bishare.data.prompt_data import PromptData
from bishare.data.row_files import parse_rows
from bishare.data.row_stream import Position, RowStream, open_reader
from bishare.data.rows import AnyRow, Format, is_answered
from bishare.errors import UserError

SAMPLE = 512
"""Fewest rows whose lengths choose the accumulation."""

IDENTITY = (
    "path",
    "split",
    "subset",
    "format",
    "seed",
    "shuffle_rows",
    "batch_size",
    "max_length",
    "prompt",
    "chat_template",
    "loss_on",
)
"""Options that decide the examples of a step."""


class StreamLoader:
    """This rank's micro-batches of a whole run, resumed at the exact batch.

    Every rank reads the same rows and takes its packs of each step. The whole run is a single epoch of known length;
    the stream alone counts the passes over the source.

    Args:
        stream: The rows.
        tokenise: Turns rows into examples.
        batch: Turns examples into a data set of packs.
        batch_size: Examples per optimizer step on all devices; rows without a label are skipped.
        accumulation: Micro-batches per optimizer step and device.
        num_steps: Optimizer steps of the run.
        world_size: Number of devices.
        rank: This device's number.
        identity: Options that give a position its meaning; a state saved with different options is refused.
    """

    def __init__(
        self,
        stream: RowStream,
        *,
        tokenise: Callable[[list[AnyRow]], list[Example]],
        batch: Callable[[Sequence[Example]], Examples],
        batch_size: int,
        accumulation: int,
        num_steps: int,
        world_size: int,
        rank: int,
        identity: dict[str, Any],
    ) -> None:
        self.stream, self.tokenise, self.batch = stream, tokenise, batch
        self.batch_size, self.accumulation, self.num_steps = batch_size, accumulation, num_steps
        self.world_size, self.rank, self.identity = world_size, rank, identity
        self._position: dict[str, Any] = {"steps": 0, "batches": 0, "stream": stream.state_dict()}

    def __len__(self) -> int:
        return self.num_steps * self.accumulation

    def __iter__(self) -> Iterator[dict[str, Any]]:
        steps, skip = self._position["steps"], self._position["batches"]
        self.stream.load_state_dict(self._position["stream"])
        for step in range(steps, self.num_steps):
            before = self.stream.state_dict()
            batches = self._step()
            after = self.stream.state_dict()
            for number in range(skip + 1, self.accumulation + 1):
                # The state when this batch has been handed out. Inside a step, the stream's state is the one before
                # the step: a resume reads the rows of the step again and skips the batches.
                if number == self.accumulation:
                    self._position = {"steps": step + 1, "batches": 0, "stream": after}
                else:
                    self._position = {"steps": step, "batches": number, "stream": before}
                yield batches[number - 1]
            skip = 0

    def state_dict(self) -> dict[str, Any]:
        """The position, and the options that give the position its meaning."""
        return {**self._position, "accumulation": self.accumulation, "identity": self.identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a position from ``state_dict``.

        Raises:
            UserError: If the state was saved with other data or options.
        """
        for name, now in self.identity.items():
            then = state_dict["identity"].get(name)
            if then != now:
                raise UserError(
                    f"The checkpoint stands in a stream with {name} {then}, now {name} is {now}: resume with the data "
                    "and options of the first run."
                )
        self._position = {name: state_dict[name] for name in ("steps", "batches", "stream")}
        if state_dict["accumulation"] != self.accumulation:  # on another number of devices, the step begins anew
            self._position["batches"] = 0

    def _step(self) -> list[dict[str, Any]]:
        """This rank's micro-batches of the next optimizer step."""
        examples: list[Example] = []
        first_run = self.stream.run
        while len(examples) < self.batch_size:
            rows = self.stream.take(self.batch_size - len(examples))
            examples += filter(count_labels, self.tokenise(rows))
            # Without this check, a source without any label would be read forever.
            if not examples and self.stream.run > first_run + 1:
                raise UserError(
                    f"No row of {self.stream.reader.source} has a token of its answer within max_length; raise "
                    "max_length."
                )
        data = self.batch(examples)
        packs = data.make_packs(range(len(data)), self.accumulation * self.world_size, self.world_size)
        num_step_labels = int(data.num_labels.sum())
        return [data[Pack(tuple(pack), num_step_labels)] for pack in packs[self.rank :: self.world_size]]


@dataclass(kw_only=True, eq=False)
class StreamedData(PromptData):
    """Rows of a source that does not fit into memory.

    The run ends at ``trainer.max_steps``, after any number of passes over the source. The first rows are held out for
    validation: 200 by default, or ``num_validation``.
    """

    path: str = field(kw_only=False)
    """A ``.jsonl`` or ``.parquet`` file, a folder with a data set as the hub stores it, or a name on the hub."""
    format: Format = "auto"
    """Fields of the rows, by default as the first row shows; chats always use the chat template."""
    split: str = "train"
    """Split of a folder or hub data set."""
    subset: str | None = None
    """Configuration of a hub data set with several configurations."""
    shuffle_rows: int = 10_000
    """Rows that are shuffled together and held in memory; 1 keeps the order of the source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffle_rows < 1:
            raise UserError(f"shuffle_rows is {self.shuffle_rows}; it must be at least 1.")
        for name in ("max_examples", "num_workers"):
            if getattr(self, name):
                raise UserError(f"{name} is not for a stream; trainer.max_steps ends it, and it needs no workers.")
        self._begin: Position | None = None
        self._num_held_out = 0

    def read(self) -> list[AnyRow]:
        """The held-out rows, followed by enough training rows to choose the accumulation."""
        wanted = 200 if self.num_validation is None else self.num_validation
        reader = open_reader(self.path, split=self.split, subset=self.subset)
        # Rows without an answer take no place among the held-out rows.
        rows = list(islice(filter(is_answered, parse_rows(reader.open(None), self.path, self.format)), wanted))
        # Training reads from here on, in every pass.
        self._begin, self._num_held_out = reader.position(), len(rows)
        return rows + self._stream().take(max(SAMPLE, 2 * self.batch_size))

    def setup(self, stage: str) -> None:
        """Read and tokenise the held-out rows, and for ``fit`` a sample of the training rows.

        The lengths of the sample choose the accumulation.

        Raises:
            UserError: If the rows cannot be read, or ``trainer.max_steps`` is not given.
        """
        if stage == "fit" and self.trainer and self.trainer.max_steps < 1:
            raise UserError("trainer.max_steps is not given; a stream has no length, so the run needs one.")
        super().setup(stage)

    def train_dataloader(self) -> StreamLoader:  # type: ignore[override]  # both are iterables with a state
        """This rank's micro-batches; after a resume, the loader goes on at the exact row."""
        return StreamLoader(
            self._stream(),
            tokenise=partial(
                encode, self.tokenizer, prompt=self.prompt, loss_on=self.loss_on, max_length=self.max_length
            ),
            batch=partial(Examples, pad_token_id=self.tokenizer.pad_token_id, packing=self._is_packed),
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            num_steps=self.steps_per_epoch,
            world_size=self._world_size,
            rank=self._rank,
            identity={name: getattr(self, name) for name in IDENTITY} | {"num_validation": self._num_held_out},
        )

    def _stream(self) -> RowStream:
        reader = open_reader(self.path, split=self.split, subset=self.subset)
        return RowStream(reader, format=self.format, block_size=self.shuffle_rows, seed=self.seed, begin=self._begin)

    def _split_rows(self, rows: list[AnyRow]) -> tuple[list[AnyRow], list[AnyRow]]:
        return rows[self._num_held_out :], rows[: self._num_held_out]

    def _plan_steps(self, train: Examples) -> None:
        self._choose_accumulation(train.lengths)
        self.steps_per_epoch = self.trainer.max_steps if self.trainer else 0

    def report(self, train: Examples) -> None:
        """Log the source, the lengths of the sample, and the steps of the run."""
        num_validation = len(self._validation) if self._validation is not None else 0
        rank_zero_info(
            f"Data: a stream of {self.path}, {num_validation:,} of its first {self._num_held_out:,} rows are held out. "
            f"A sample of {len(train):,} training examples has {train.lengths.mean():.0f} tokens on average, "
            f"{train.num_labels.sum() / train.lengths.sum():.0%} of them with a label. {self.steps_per_epoch:,} steps "
            f"of {self.batch_size} examples; {self.accumulation} micro-batches per step and device, devices: "
            f"{self._world_size}."
        )
