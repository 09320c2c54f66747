"""Published commonsense scores of Bi-Share LoRA, for comparison.

From the authors' answers to the reviewers (table R3C2 in the history of the repository published with Zhou et al.,
ICML 2025): Llama 3-8B trained on Alpaca, 0-shot, one seed. The source does not tell acc from acc_norm.
"""

from typing import NamedTuple

from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig

BASE = "Llama 3-8B"
TASKS = ("openbookqa", "arc_challenge", "hellaswag", "arc_easy", "piqa", "winogrande", "boolq", "social_iqa")
MAIN = (2, 4, 16)
"""Ranks (local, intra, inter) of the paper's main tables."""


class Published(NamedTuple):
    """A row: transform, ranks (local, intra, inter) and scores in percent, in the order of ``TASKS``."""

    transform: str
    ranks: tuple[int, int, int]
    scores: tuple[float, ...]

    @property
    def name(self) -> str:
        """Head of the row's column in a report."""
        return f"published: {self.transform} {'-'.join(map(str, self.ranks))}, {BASE}"


ROWS = [
    Published("slice", (2, 1, 2), (46.00, 56.48, 79.91, 83.00, 81.94, 73.64, 82.32, 48.21)),
    Published("gate", (0, 4, 8), (44.60, 54.95, 79.45, 80.51, 81.45, 74.19, 80.98, 46.01)),
    Published("kronecker", (2, 8, 32), (46.40, 56.57, 80.04, 83.08, 82.15, 73.64, 82.60, 48.98)),
    Published("slice", (2, 4, 16), (46.40, 57.17, 79.96, 82.95, 81.94, 74.74, 83.09, 49.03)),
    Published("gate", (2, 4, 16), (46.20, 56.83, 79.89, 82.87, 81.94, 74.27, 82.97, 48.36)),
    Published("kronecker", (4, 8, 8), (46.00, 56.83, 80.03, 82.87, 81.99, 73.48, 83.00, 48.46)),
    Published("slice", (4, 8, 32), (46.20, 57.59, 79.98, 83.16, 82.21, 73.95, 82.48, 48.06)),
    Published("gate", (4, 16, 32), (46.00, 55.97, 79.96, 82.74, 82.05, 73.88, 82.60, 48.57)),
    Published("kronecker", (8, 16, 16), (46.20, 56.83, 80.01, 82.91, 82.10, 74.11, 83.18, 48.67)),
    Published("slice", (8, 16, 32), (46.60, 57.34, 80.13, 83.21, 81.77, 73.72, 83.03, 48.26)),
    Published("gate", (16, 8, 8), (46.20, 56.57, 80.00, 82.49, 81.72, 74.11, 83.09, 48.57)),
    Published("kronecker", (16, 32, 32), (46.20, 57.42, 80.07, 83.38, 81.61, 74.11, 82.84, 48.36)),
]


def published_for(config: AdapterConfig) -> list[Published]:
    """The published row of the configuration's transform with the nearest ranks.

    Methods without a transform get a row of each transform.
    """
    if isinstance(config, BiShareConfig):
        return [_nearest(config.transform, (config.r_local, config.r_intra, config.r_inter))]
    return [_nearest(transform, MAIN) for transform in ("slice", "gate", "kronecker")]


def _nearest(transform: str, ranks: tuple[int, int, int]) -> Published:
    def distance(row: Published) -> int:
        return sum(abs(a - b) for a, b in zip(row.ranks, ranks, strict=True))

    return min((row for row in ROWS if row.transform == transform), key=distance)
