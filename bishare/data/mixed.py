"""Several sources of rows in a single training, each with a share of the examples."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from bishare.data.mixture import Mixture
from bishare.data.prompt_data import PromptData
from bishare.data.row_files import is_local, read_rows
from bishare.data.rows import AnyRow, Format
from bishare.errors import UserError


@dataclass(kw_only=True, frozen=True)
class Source:
    """A source of rows, with the options of ``InstructionData``."""

    path: str = field(kw_only=False)
    """A ``.json``, ``.jsonl`` or ``.parquet`` file, a folder with a data set as the hub stores it, or a hub name."""
    weight: float | None = None
    """Share of the examples of an epoch, relative to the sum of all weights; given for all sources or for none."""
    format: Format = "auto"
    """Fields of the rows, by default as the first row shows."""
    split: str = "train"
    """Split of a folder or hub data set."""
    subset: str | None = None
    """Configuration of a hub data set with several configurations."""

    def read(self) -> list[AnyRow]:
        """All rows of the source."""
        return read_rows(self.path, split=self.split, subset=self.subset, format=self.format)


@dataclass(kw_only=True, eq=False)
class MixedData(PromptData):
    """Rows of several sources. Without weights every row comes once per epoch.

    With weights, an epoch holds a share of examples from each source. By default the source with the fewest rows for
    its weight comes once per epoch, and this decides the length of an epoch. The next epoch goes on with the examples
    not seen yet. Rows for validation are drawn at random from all sources together.
    """

    sources: list[Source] = field(kw_only=False)
    """The sources to mix."""
    examples_per_epoch: int | None = None
    """Examples of an epoch if there are weights; a source with too few rows for its share comes more than once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise UserError("sources is empty; give at least one with a path.")
        given, without = [], []
        for source in self.sources:
            if source.weight is None:
                without.append(source.path)
            else:
                given.append(source.weight)
        if given and without:
            raise UserError(f"sources: {without[0]} has no weight, but others have; give one to all or to none.")
        if any(weight <= 0 for weight in given):
            raise UserError(f"sources: the weights are {given}; each must be positive.")
        if self.examples_per_epoch is not None and (not given or self.examples_per_epoch < len(given)):
            raise UserError(
                f"examples_per_epoch is {self.examples_per_epoch}; it needs weights, and at least one for each source."
            )
        self._weights: Sequence[float] = given
        self._source_of: dict[int, int] = {}

    def prepare_data(self) -> None:
        """Fill the download caches, on one process of each machine."""
        super().prepare_data()
        for source in self.sources:
            if not is_local(source.path):
                source.read()

    def read(self) -> list[AnyRow]:
        """The rows of all sources, in the order of the sources."""
        rows: list[AnyRow] = []
        for number, source in enumerate(self.sources):
            found = source.read()
            # By identity: equal rows may stand in two sources.
            self._source_of |= {id(row): number for row in found}
            rows += found
        return rows

    def mixture(self, rows: Sequence[AnyRow]) -> Mixture | None:
        """The mixture of the rows left for training; None without weights.

        Raises:
            UserError: If a source has no row left for training, or its share of an epoch is less than one example.
        """
        if not self._weights:
            return None
        source_of = np.array([self._source_of[id(row)] for row in rows])
        members = []
        for number, source in enumerate(self.sources):
            members.append(np.flatnonzero(source_of == number))
            # The validation split or max_length may have taken every row of a small source.
            if not len(members[-1]):
                raise UserError(
                    f"{source.path} has no rows left to train on; lower num_validation or raise max_length."
                )
        mixture = Mixture(members, self._weights, num_examples=self.examples_per_epoch)
        shares = []
        for source, count, examples in zip(self.sources, mixture.counts, members, strict=True):
            if not count:
                raise UserError(
                    f"{source.path} has weight {source.weight}, too little for one of {len(mixture)} examples; raise "
                    "the weight or examples_per_epoch."
                )
            shares.append(f"{count:,} of {len(examples):,} from {source.path}")
        rank_zero_info(f"Mixture: an epoch takes {'; '.join(shares)}.")
        return mixture
