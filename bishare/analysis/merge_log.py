"""The log of merges in a run's folder: a JSON object for each merge, in the order of the merges."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "merges.jsonl"


@dataclass(frozen=True, kw_only=True)
class MergeRecord:
    """A logged merge of two layers' B matrices."""

    step: int
    """Optimizer steps before the merge."""
    group: str
    layer: int
    """The lower layer, which loses its B."""
    uses: int
    """The layer whose B is used from now on, by the lower layer and by every layer that used the lower layer's B."""
    distance: float
    """Distance of the merged pair."""
    next_distance: float | None
    """Distance of the next best pair; None if there is no pair."""
    groups_left: int
    """B matrices left in the group."""
    live_parameters: int
    fraction_of_lora: float

    def __str__(self) -> str:
        following = "none" if self.next_distance is None else f"{self.next_distance:.4g}"
        return (
            f"step {self.step:,}, {self.group}: layer {self.layer} now uses the B of layer {self.uses}; "
            f"distance {self.distance:.4g}, next best {following}; {self.groups_left} left"
        )

    def line(self) -> str:
        """The record as a line of the log."""
        return json.dumps(asdict(self)) + "\n"


def read_merges(run: str | Path) -> list[MergeRecord]:
    """The merges of ``callbacks.AdaptiveMerging`` in a run folder, in order; an empty list without merges."""
    path = Path(run, FILE)
    if not path.is_file():  # the file begins with the first merge
        return []
    return [MergeRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
