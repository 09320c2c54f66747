"""Instructions with answers from a file, a folder or the hub, in the format of Alpaca."""

from dataclasses import dataclass, field

from bishare.data.module import PromptData
from bishare.data.rows import Row, is_file, read_rows


@dataclass(kw_only=True, eq=False)
class InstructionData(PromptData):
    """Rows with ``instruction``, ``input`` (may be left out) and ``output``."""

    path: str = field(kw_only=False)
    """A ``.json`` or ``.jsonl`` file, a folder with a data set as the hub stores it, or a name on the hub."""
    split: str = "train"
    """Split of a folder or hub data set."""

    def prepare_data(self) -> None:
        """Fill the download caches, on one process of each machine."""
        super().prepare_data()
        if not is_file(self.path):
            read_rows(self.path, split=self.split)

    def read(self) -> list[Row]:
        """All rows of the source."""
        return read_rows(self.path, split=self.split)
