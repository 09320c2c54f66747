"""An endless stream of rows that are read as they are needed, shuffled block by block and resumed at the exact row.

A block is some thousands of rows in the order of their source; its own order is a function of the seed, the pass and
the block. So a position is the place in the source where the block begins and the number of rows taken from it:
resuming reads one block again, and nothing that came before it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from bishare.data.row_files import errors_of_hub, is_file, load_hub, parse_line, read_lines, read_parquet
from bishare.data.rows import AnyRow, Format, detect_format, parse_row
from bishare.errors import UserError

Place = dict[str, Any]
"""Where a reader stands; numbers and text only, so that it can be part of a checkpoint."""


class Reader(ABC):
    """Reads the rows of a source from any place.

    Args:
        source: A ``.jsonl`` or ``.parquet`` file, a folder, or a data set's name on the hub.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    @abstractmethod
    def open(self, place: Place | None) -> Iterator[tuple[int, Any]]:
        """The rows with their numbers from a place on, by default from the first row."""

    @abstractmethod
    def place(self) -> Place:
        """Where the row stands that the iterator opened last gives next."""


class FileReader(Reader):
    """Reads a file; the place is the number of the last row."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._row = 0

    @override
    def open(self, place: Place | None) -> Iterator[tuple[int, Any]]:
        self._row = place["row"] if place else 0
        path = Path(self.source).expanduser()
        if path.suffix == ".parquet":
            objects = read_parquet(path, self._row)
        else:
            objects = ((number, self._parse(path, number, line)) for number, line in read_lines(path, self._row))
        for number, fields in objects:
            self._row = number
            yield number, fields

    @override
    def place(self) -> Place:
        return {"row": self._row}

    def _parse(self, path: Path, number: int, line: str) -> Any:
        if line.lstrip().startswith("["):
            raise UserError(f"{path} is one JSON list, which cannot be streamed; write one object per line (JSONL).")
        return parse_line(path, number, line)


class HubReader(Reader):
    """Reads a folder or hub data set; ``datasets`` finds a place without downloading the files before it."""

    def __init__(self, source: str, split: str, subset: str | None) -> None:
        super().__init__(source)
        self._data = load_hub(source, split, subset, streaming=True)
        self._begin = copy.deepcopy(self._data.state_dict())
        self._row = 0

    @override
    def open(self, place: Place | None) -> Iterator[tuple[int, Any]]:
        self._row = place["row"] if place else 0
        self._data.load_state_dict(copy.deepcopy(place["hub"] if place else self._begin))
        with errors_of_hub(self.source):
            for fields in self._data:
                self._row += 1
                yield self._row, fields

    @override
    def place(self) -> Place:
        return {"row": self._row, "hub": copy.deepcopy(self._data.state_dict())}


def open_reader(source: str, *, split: str = "train", subset: str | None = None) -> Reader:
    """The reader for a source.

    Raises:
        UserError: If a folder or hub data set cannot be loaded.
    """
    return FileReader(source) if is_file(source) else HubReader(source, split, subset)


class RowStream:
    """Rows in passes over their source, each shuffled block by block.

    Args:
        reader: Reads the source.
        format: Which fields the rows have; ``auto`` goes by the first row that is met.
        block_size: Rows that are shuffled together, and held in memory.
        seed: Seed of the order of the rows.
        begin: Where a pass begins, by default at the first row.
    """

    def __init__(
        self, reader: Reader, *, format: Format, block_size: int, seed: int, begin: Place | None = None
    ) -> None:
        self.reader, self.format, self.block_size, self.seed, self.begin = reader, format, block_size, seed, begin
        self.run = 0
        """The pass that the stream is in."""
        self._number = 0  # of the block in its pass
        self._place = begin  # where the block begins
        self._taken = 0
        self._objects: Iterator[tuple[int, Any]] | None = None
        self._block: list[AnyRow] | None = None

    def take(self, count: int) -> list[AnyRow]:
        """The next rows.

        Raises:
            UserError: If there are none, or they cannot be read.
        """
        rows: list[AnyRow] = []
        while len(rows) < count:
            block = self._block_here()
            part = block[self._taken : self._taken + count - len(rows)]
            rows += part
            self._taken += len(part)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"run": self.run, "block": self._number, "place": self._place, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position from ``state_dict``."""
        self.run, self._number, self._place, self._taken = (state[k] for k in ("run", "block", "place", "taken"))
        self._objects = self._block = None

    def _block_here(self) -> list[AnyRow]:
        """The block with the next row in it."""
        if self._block is None:
            self._block = self._read()
        while self._taken == len(self._block):
            at_end = len(self._block) < self.block_size
            if at_end and self._number == 0 and not self._block:
                raise UserError(f"{self.reader.source} holds no rows to train on.")
            self._taken = 0
            if at_end:
                self.run, self._number, self._place, self._objects = self.run + 1, 0, self.begin, None
            else:
                self._number, self._place = self._number + 1, self.reader.place()
            self._block = self._read()
        return self._block

    def _read(self) -> list[AnyRow]:
        if self._objects is None:
            self._objects = self.reader.open(self._place)
        rows = []
        for number, fields in islice(self._objects, self.block_size):
            where = f"{self.reader.source}, row {number}"
            if self.format == "auto":
                self.format = detect_format(fields, where)
            rows.append(parse_row(fields, self.format, where))
        order = np.random.default_rng([self.seed, self.run, self._number]).permutation(len(rows))
        return [rows[index] for index in order]
