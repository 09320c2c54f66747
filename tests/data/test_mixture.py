from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from bishare.data.mixture import Mixture

SIZES = (70, 30, 11)


def sources():
    return [np.arange(start, stop) for start, stop in pairwise(np.cumsum([0, *SIZES]).tolist())]


def shares(order):
    return [int(np.isin(order, source).sum()) for source in sources()]


def test_epoch_has_each_sources_share():
    mixture = Mixture(sources(), [2, 1, 1])
    assert len(mixture) == 44  # 11 is a quarter
    for epoch in range(3):
        assert shares(mixture.order(0, epoch)) == mixture.counts == [22, 11, 11]
    assert len(set(mixture.order(0, 0).tolist())) == 44


def test_weights_of_the_sizes_give_examples_once():
    mixture = Mixture(sources(), SIZES)
    assert sorted(mixture.order(0, 5)) == list(range(sum(SIZES)))


def test_source_comes_whole_before_it_repeats():
    mixture = Mixture(sources(), [2, 1, 1])
    seen = Counter()
    for epoch in range(20):
        seen.update(mixture.order(3, epoch).tolist())
        for source in sources():
            times = [seen[index] for index in source.tolist()]
            assert max(times) - min(times) <= 1


def test_small_source_repeats():
    mixture = Mixture(sources(), [1, 1, 1], num_examples=100)
    assert len(mixture) == 100
    times = Counter(mixture.order(0, 0).tolist())
    assert {times[index] for index in sources()[2].tolist()} == {3}
    assert sorted(shares(mixture.order(0, 0))) == [33, 33, 34]


def test_order_is_a_function_of_seed_and_epoch():
    orders = [tuple(Mixture(sources(), [3, 2, 1]).order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    again = [tuple(Mixture(sources(), [3, 2, 1]).order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == again
    assert len(set(orders)) == 4


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.1], [1, 1e-3, 5], [0.3, 0.3, 0.4]])
def test_counts_add_up_to_their_shares(weights):
    for total in (1, 10, 97, 1000):
        counts = Mixture(sources(), weights, num_examples=total).counts
        assert sum(counts) == total
        assert all(abs(c - total * w / sum(weights)) < 1 for c, w in zip(counts, weights, strict=True))
