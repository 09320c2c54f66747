"""Cuts an epoch into optimizer steps of a fixed number of examples, and each step into packs of nearly equal cost.

The batch of an optimizer step depends on the seed and the epoch alone, not on the number of devices or the
accumulation. Each pack has the number of labels of its whole step: the loss of a step is then the mean over the labels
of the step, for every partition into packs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bishare.data.examples import Pack
from bishare.data.mixture import Mixture
from bishare.errors import UserError

MakePacks = Callable[[Sequence[int], int, int], list[list[int]]]
"""From examples, a number of packs and a number of devices to the packs, as ``Examples.make_packs``."""


def choose_accumulation(
    lengths: npt.ArrayLike, *, batch_size: int, tokens_per_micro_batch: int, world_size: int
) -> int:
    """The fewest micro-batches per step whose mean number of tokens is within the budget.

    Args:
        lengths: Tokens of every training example.
        batch_size: Examples per optimizer step on all devices.
        tokens_per_micro_batch: The budget of one device's micro-batch.
        world_size: Number of devices.

    Raises:
        UserError: If the devices cannot share the batch equally, or there are fewer examples than devices.
    """
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        nearest = f"{below} or {below + world_size}" if below else f"{world_size}"
        raise UserError(
            f"batch_size is {batch_size}, which {world_size} devices cannot share equally; the nearest: {nearest}."
        )
    tokens = np.asarray(lengths)
    if len(tokens) < world_size:
        raise UserError(f"{len(tokens)} training examples are fewer than the {world_size} devices.")
    examples = min(batch_size, len(tokens))
    wanted = math.ceil(examples * float(tokens.mean()) / (world_size * tokens_per_micro_batch))
    return max(1, min(wanted, examples // world_size))


class StepSampler(DistributedSampler[Pack]):
    """This rank's packs, ``accumulation`` for each optimizer step; a pure function of the seed and the epoch.

    The base class is torch's ``DistributedSampler``: Lightning keeps such a sampler and sets its epoch. A last, short
    step is kept if its examples fill every pack, and left out otherwise.

    Args:
        num_labels: Labels of every example [num_examples].
        make_packs: Partitions the examples of a step into packs.
        batch_size: Examples per optimizer step on all devices.
        accumulation: Micro-batches per optimizer step and device.
        world_size: Number of devices.
        rank: This device's number.
        seed: Seed of the order of examples.
        mixture: Examples of an epoch; by default every example once.

    Raises:
        UserError: If a step has fewer examples than packs.
    """

    def __init__(
        self,
        num_labels: npt.ArrayLike,
        make_packs: MakePacks,
        *,
        batch_size: int,
        accumulation: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        mixture: Mixture | None = None,
    ) -> None:
        self.num_labels, self.make_packs, self.mixture = np.asarray(num_labels), make_packs, mixture
        self.num_examples = len(self.num_labels if mixture is None else mixture)
        super().__init__(cast(Dataset[Any], self.num_labels), num_replicas=world_size, rank=rank, seed=seed)
        self.batch_size, self.accumulation = batch_size, accumulation
        self.start = 0
        """Packs at the front of the epoch to leave out, because a resumed run has seen them."""
        self.num_packs = accumulation * world_size
        if batch_size < self.num_packs:
            raise UserError(
                f"batch_size is {batch_size}, but a step has {self.num_packs} packs ({accumulation} micro-batches on "
                f"{world_size} devices); the nearest that fills them: {self.num_packs}."
            )
        full, rest = divmod(self.num_examples, batch_size)
        self.num_steps = full + (rest >= self.num_packs)
        if self.num_steps == 0:
            raise UserError(f"{rest} training examples are fewer than the {self.num_packs} packs of one step.")
        if 0 < rest < self.num_packs:
            rank_zero_info(
                f"Each epoch leaves out the {rest} examples of its last step, which has {self.num_packs} packs to fill."
            )

    def __len__(self) -> int:
        return self.num_steps * self.accumulation

    def __iter__(self) -> Iterator[Pack]:
        return self.packs(self.epoch, self.start)

    def packs(self, epoch: int, start: int = 0) -> Iterator[Pack]:
        """This rank's packs of an epoch, in order, without the first ``start``."""
        order = self._order(epoch)
        first_step, skip = divmod(start, self.accumulation)
        for number in range(first_step, self.num_steps):
            step = order[number * self.batch_size : (number + 1) * self.batch_size]
            num_step_labels = int(self.num_labels[step].sum())
            packs = self.make_packs(step.tolist(), self.num_packs, self.num_replicas)
            # The packs are sorted by cost: in every round of micro-batches, the devices compute about as long.
            for pack in packs[self.rank :: self.num_replicas][skip:]:
                yield Pack(tuple(pack), num_step_labels)
            skip = 0

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self.mixture is not None:
            return self.mixture.order(self.seed, epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)


class EvaluationSampler(DistributedSampler[Pack]):
    """This rank's packs for evaluation: every example exactly once, equally many packs on each rank, none empty.

    Args:
        lengths: Tokens of every example [num_examples]; at least an example per device.
        tokens_per_pack: Tokens of a pack, on average.
        world_size: Number of devices.
        rank: This device's number.
    """

    def __init__(self, lengths: npt.ArrayLike, *, tokens_per_pack: int, world_size: int = 1, rank: int = 0) -> None:
        tokens = np.asarray(lengths)
        super().__init__(cast(Dataset[Any], tokens), num_replicas=world_size, rank=rank, shuffle=False)
        wanted = math.ceil(int(tokens.sum()) / (world_size * tokens_per_pack)) * world_size
        # Under ZeRO-3 every forward is a collective: ranks with different numbers of packs would wait forever.
        num_packs = min(wanted, len(tokens) // world_size * world_size)
        assert num_packs > 0, "fewer examples than devices"
        by_length = np.argsort(-tokens, kind="stable")
        packs = [Pack(tuple(map(int, part))) for part in np.array_split(by_length, num_packs)]
        self.packs = packs[rank::world_size]

    def __len__(self) -> int:
        return len(self.packs)

    def __iter__(self) -> Iterator[Pack]:
        return iter(self.packs)


class StepLoader(DataLoader[dict[str, Any]]):
    """A loader over a ``StepSampler`` that goes on inside an epoch at the exact batch after its saved state.

    The state counts the batches handed out, not the batches prepared by workers. A position belongs to an epoch: if
    Lightning has moved on to the next epoch, the next epoch starts at its beginning.

    Args:
        dataset: Indexed by ``Pack``.
        sampler: The packs of this rank.
        num_workers: Processes that prepare batches.
    """

    def __init__(self, dataset: Dataset[dict[str, Any]], sampler: StepSampler, *, num_workers: int = 0) -> None:
        # A generator of its own: otherwise each epoch draws a seed for workers from torch's global stream, and a
        # resumed run draws another number of seeds.
        super().__init__(
            dataset, batch_size=None, sampler=sampler, num_workers=num_workers, generator=torch.Generator()
        )
        self.steps = sampler
        self._epoch, self._batches = 0, 0
        self._resume: dict[str, int] | None = None

    # A generator starts with the first batch, when Lightning has set the epoch; an iterator is made before.
    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # torch wants its own iterator class
        self._epoch, self._batches = self.steps.epoch, self._take_resume_position()
        self.steps.start = self._batches
        iterator = super().__iter__()
        self.steps.start = 0  # the iterator keeps its start; the next epoch begins at 0
        for batch in iterator:
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position, and the options that give the position its meaning."""
        if self._resume is not None:
            return self._resume
        return {
            "epoch": self._epoch,
            "batches": self._batches,
            "accumulation": self.steps.accumulation,
            **self._identity(),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on at a position from ``state_dict`` when its epoch is iterated next."""
        self._resume = dict(state_dict)

    def _take_resume_position(self) -> int:
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != self.steps.epoch:
            return 0
        for name, now in self._identity().items():
            if state[name] != now:
                raise UserError(
                    f"The checkpoint stands inside an epoch with {name} {state[name]}, now {name} is {now}: resume "
                    "with the data and options of the first run."
                )
        # On another number of devices the accumulation differs: only whole optimizer steps count then.
        steps, rest = divmod(state["batches"], state["accumulation"])
        if state["accumulation"] != self.steps.accumulation:
            rest = 0
        return steps * self.steps.accumulation + rest

    def _identity(self) -> dict[str, int]:
        return {
            "examples": self.steps.num_examples,
            "batch_size": self.steps.batch_size,
            "seed": self.steps.seed,
        }
