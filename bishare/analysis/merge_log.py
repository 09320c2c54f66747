"""The log of merges in a run's folder: a JSON object for each merge, in the order of the merges."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "merges.jsonl"


@dataclass(frozen=True, kw_only=True)
class MergeRecord:
    """One merge, as it is logged."""

    step: int
    group: str
    layer: int
    """The lower layer."""
    uses: int
    """The layer whose B it uses from now on, with every layer that used its own."""
    distance: float
    next_distance: float | None
    """Of the pair that would have been next."""
    groups_left: int
    """Bs left in this group."""
    live_parameters: int
    fraction_of_lora: float

    def __str__(self) -> str:
        following = "none" if self.next_distance is None else f"{self.next_distance:.4g}"
        return (
            f"step {self.step:,}, {self.group}: layer {self.layer} now uses the B of layer {self.uses}; "
            f"distance {self.distance:.4g}, next best {following}; {self.groups_left} left"
        )

    def line(self) -> str:
        """Its line in the log."""
        return json.dumps(asdict(self)) + "\n"


def read_merges(run: str | Path) -> list[MergeRecord]:
    """The merges of ``callbacks.AdaptiveMerging`` in order; none where nothing merged."""
    path = Path(run, FILE)
    if not path.is_file():
        return []
    return [MergeRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
