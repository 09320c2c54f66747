"""Instructions, chats or texts from a file, a folder or the hub."""

from dataclasses import dataclass, field

from bishare.data.prompt_data import PromptData
from bishare.data.row_files import is_local, read_rows
from bishare.data.rows import AnyRow, Format


@dataclass(kw_only=True, eq=False)
class InstructionData(PromptData):
    """Rows of one source: instructions, chats, completions or texts."""

    path: str = field(kw_only=False)
    """A ``.json``, ``.jsonl`` or ``.parquet`` file, a folder with a data set as the hub stores it, or a hub name."""
    format: Format = "auto"
    """Fields of the rows, by default as the first row shows; chats always use the chat template."""
    split: str = "train"
    """Split of a folder or hub data set."""
    subset: str | None = None
    """Configuration of a hub data set with several configurations."""

    def prepare_data(self) -> None:
        """Fill the download caches, on one process of each machine."""
        super().prepare_data()
        if not is_local(self.path):  # a local file needs no download
            self.read()

    def read(self) -> list[AnyRow]:
        """All rows of the source."""
        return read_rows(self.path, split=self.split, subset=self.subset, format=self.format)
