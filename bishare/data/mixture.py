"""Draws the examples of an epoch from several sources, each with a fixed share of the epoch.

Every source is shuffled on its own, anew for each pass. No example of a source comes again before all have come.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Mixture:
    """The examples of each epoch; a pure function of the seed and the epoch.

    Args:
        sources: Positions of the examples of each source; no source is empty.
        weights: Share of each source in an epoch; the sum need not be 1.
        num_examples: Examples of an epoch. By default, the source with the fewest examples for its weight comes once.
    """

    def __init__(
        self, sources: Sequence[npt.NDArray[np.int64]], weights: Sequence[float], *, num_examples: int | None = None
    ) -> None:
        self.sources = sources
        shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        if num_examples is None:
            sizes = np.array(list(map(len, sources)))
            num_examples = int((sizes / shares).min() + 1e-9)  # in floats, 3 / 0.3 is a little under 10
        self.counts = _apportion(shares, num_examples)
        """Examples of each source in an epoch."""

    def __len__(self) -> int:
        return sum(self.counts)

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Positions of the examples of an epoch [num_examples], all sources shuffled together."""
        drawn = np.concatenate([self._draw(number, seed, epoch) for number in range(len(self.sources))])
        return np.random.default_rng([seed, epoch]).permutation(drawn)

    def _draw(self, number: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The examples of a source in an epoch [count], taken where the epoch before stopped."""
        source, count = self.sources[number], self.counts[number]
        places = np.arange(epoch * count, (epoch + 1) * count)
        passes, places = places // len(source), places % len(source)
        parts = [source[:0]]  # a count of 0 still has a type
        # An epoch may span several passes, each with a permutation of its own.
        for run in np.unique(passes).tolist():
            order = np.random.default_rng([seed, number, run]).permutation(source)
            parts.append(order[places[passes == run]])
        return np.concatenate(parts)


def _apportion(shares: npt.NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers with the sum ``total``, each less than 1 away from its share (method of largest remainders)."""
    exact = shares * total
    counts = np.floor(exact + 1e-9).astype(int)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return list(map(int, counts))
