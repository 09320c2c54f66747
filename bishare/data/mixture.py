"""Draws the examples of an epoch from several sources, each with a fixed share of them.

Over the epochs each source is gone through in an order of its own, whole, before any of its examples comes again.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Mixture:
    """Which examples an epoch holds; a pure function of the seed and the epoch.

    Args:
        sources: The examples of each source, by their positions; none of them empty.
        weights: Share of each source in an epoch; they need not add up to 1.
        num_examples: Examples of an epoch, by default so many that the scarcest source comes once.
    """

    def __init__(
        self, sources: Sequence[npt.NDArray[np.int64]], weights: Sequence[float], *, num_examples: int | None = None
    ) -> None:
        self.sources = sources
        shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        if num_examples is None:
            sizes = np.array([len(source) for source in sources])
            num_examples = int((sizes / shares).min() + 1e-9)  # 3 / 0.3 is a little under 10
        self.counts = _apportion(shares, num_examples)
        """Examples of each source in an epoch."""

    def __len__(self) -> int:
        return sum(self.counts)

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The examples of an epoch, all sources shuffled together."""
        drawn = np.concatenate([self._draw(number, seed, epoch) for number in range(len(self.sources))])
        return np.random.default_rng([seed, epoch]).permutation(drawn)

    def _draw(self, number: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The next examples of a source, which is shuffled anew for each pass."""
        source, count = self.sources[number], self.counts[number]
        places = np.arange(epoch * count, (epoch + 1) * count)
        passes, places = places // len(source), places % len(source)
        parts = [
            np.random.default_rng([seed, number, run]).permutation(source)[places[passes == run]]
            for run in np.unique(passes).tolist()
        ]
        return np.concatenate([source[:0], *parts])


def _apportion(shares: npt.NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers that add up to the total, each within one of its share (largest remainders)."""
    exact = shares * total
    counts = np.floor(exact + 1e-9).astype(int)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return [int(count) for count in counts]
