"""An endless stream of rows, read as needed, shuffled block by block and resumed at the exact row.

A block is some thousands of rows in the order of their source. The order inside a block is a function of the seed, the
pass and the number of the block. So the position of a stream is the position of its reader at the start of the block
and the number of rows taken from the block: resuming reads the block again, but no earlier row.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from bishare.data.hub import errors_of_hub, files_of_folder, load_hub
from bishare.data.row_files import is_file, parse_line, read_lines, read_parquet
from bishare.data.rows import AnyRow, Format, detect_format, parse_row
from bishare.errors import UserError

Position = dict[str, Any]
"""Position of a reader in its source: numbers and text only, so that a checkpoint can hold the position."""


class Reader(ABC):
    """Reads the rows of a source from any position.

    Args:
        source: A ``.jsonl`` or ``.parquet`` file, a folder, or a data set's name on the hub.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.part = source
        """The file that is being read, for messages; the source itself if its files are not known."""

    @abstractmethod
    def open(self, position: Position | None) -> Iterator[tuple[int, Any]]:
        """The rows and their numbers from a position on; None means the first row."""

    @abstractmethod
    def position(self) -> Position:
        """Position behind the last row given by the iterator that was opened last."""


class FileReader(Reader):
    """Reads files one after the other; a position is the number of the file, and of the last row in the file."""

    def __init__(self, source: str, files: Sequence[Path]) -> None:
        super().__init__(source)
        self.files = files
        self._file = self._row = 0

    @override
    def open(self, position: Position | None) -> Iterator[tuple[int, Any]]:
        if position is not None and "hub" in position:
            raise UserError(f"The checkpoint's position in {self.source} is of another reader; start the run anew.")
        start = position or {"row": 0}
        first = start.get("file", 0)  # left out where there was one file only
        for number in range(first, len(self.files)):
            file = self.files[number]
            self._file, self._row = number, start["row"] if number == first else 0
            self.part = str(file)
            objects = read_parquet(file, self._row) if file.suffix == ".parquet" else self._read_json(file)
            for row, fields in objects:
                self._row = row
                yield row, fields

    @override
    def position(self) -> Position:
        return {"file": self._file, "row": self._row}

    def _read_json(self, path: Path) -> Iterator[tuple[int, Any]]:
        for number, line in read_lines(path, self._row):
            # A JSON list parses only as a whole, and a stream must not hold the whole file.
            if line.lstrip().startswith("["):
                raise UserError(
                    f"{path} is one JSON list, which cannot be streamed; write one object per line (JSONL)."
                )
            yield number, parse_line(path, number, line)


class HubReader(Reader):
    """Reads a folder or hub data set; ``datasets`` finds a position without downloading the files before."""

    def __init__(self, source: str, split: str, subset: str | None) -> None:
        super().__init__(source)
        self._data = load_hub(source, split, subset, streaming=True)
        # Copies: datasets changes its state dict in place while rows are read.
        self._begin = copy.deepcopy(self._data.state_dict())
        self._row = 0

    @override
    def open(self, position: Position | None) -> Iterator[tuple[int, Any]]:
        position = position or {"row": 0, "hub": self._begin}
        self._row = position["row"]
        self._data.load_state_dict(copy.deepcopy(position["hub"]))
        with errors_of_hub(self.source):
            for fields in self._data:
                self._row += 1
                yield self._row, fields

    @override
    def position(self) -> Position:
        return {"row": self._row, "hub": copy.deepcopy(self._data.state_dict())}


def open_reader(source: str, *, split: str = "train", subset: str | None = None) -> Reader:
    """The reader for a source.

    Raises:
        UserError: If a folder or hub data set cannot be loaded.
    """
    files = [Path(source).expanduser()] if is_file(source) else files_of_folder(source, split, subset)
    if files is not None:
        return FileReader(source, files)
    return HubReader(source, split, subset)


class RowStream:
    """Rows in passes over their source, each shuffled block by block.

    Args:
        reader: Reads the source.
        format: Fields of the rows; ``auto`` goes by the first row read of each file.
        block_size: Rows that are shuffled together and held in memory.
        seed: Seed of the order of the rows.
        begin: Position of the first row of a pass, by default the first row of the source.
    """

    def __init__(
        self, reader: Reader, *, format: Format, block_size: int, seed: int, begin: Position | None = None
    ) -> None:
        self.reader, self.format, self.block_size, self.seed, self.begin = reader, format, block_size, seed, begin
        self._formats: dict[str, Format] = {}  # by file
        self.run = 0
        """Number of the current pass."""
        self._number = 0  # of the block in its pass
        self._block_start = begin
        self._taken = 0  # rows of the block
        self._objects: Iterator[tuple[int, Any]] | None = None
        self._block: list[AnyRow] | None = None  # shuffled

    def take(self, count: int) -> list[AnyRow]:
        """The next rows.

        Raises:
            UserError: If the source has no row to train on, or a row cannot be read.
        """
        rows: list[AnyRow] = []
        while len(rows) < count:
            block = self._current_block()
            part = block[self._taken : self._taken + count - len(rows)]
            rows += part
            self._taken += len(part)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"run": self.run, "block": self._number, "place": self._block_start, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position from ``state_dict``."""
        self.run, self._number = state["run"], state["block"]
        self._block_start, self._taken = state["place"], state["taken"]
        self._objects = self._block = None

    def _current_block(self) -> list[AnyRow]:
        """The block that holds the next row."""
        if self._block is None:
            self._block = self._read_block()
        while self._taken == len(self._block):
            # A short block ends the pass; a source of whole blocks ends with an empty block.
            at_end = len(self._block) < self.block_size
            if at_end and self._number == 0 and not self._block:
                raise UserError(f"{self.reader.source} holds no rows to train on.")
            self._taken = 0
            if at_end:
                self.run, self._number = self.run + 1, 0
                self._block_start, self._objects = self.begin, None
            else:
                self._number, self._block_start = self._number + 1, self.reader.position()
            self._block = self._read_block()
        return self._block

    def _read_block(self) -> list[AnyRow]:
        if self._objects is None:
            self._objects = self.reader.open(self._block_start)
        rows = []
        for number, fields in islice(self._objects, self.block_size):
            part = self.reader.part
            where = f"{part}, row {number}"
            if self.format == "auto" and part not in self._formats:  # the first row of a file decides for the file
                self._formats[part] = detect_format(fields, where)
            rows.append(parse_row(fields, self._formats.get(part, self.format), where))
        order = np.random.default_rng([self.seed, self.run, self._number]).permutation(len(rows))
        return [rows[index] for index in order]
