import random
from itertools import pairwise, takewhile

import pytest

from bishare.data.balancing import balance_by_new_tokens, balance_by_padded_tokens, balance_by_tokens


def tokens(lengths, pack):
    return sum(lengths[index] for index in pack)


def padded_tokens(lengths, pack):
    return len(pack) * max(lengths[index] for index in pack)


def draws():
    for seed in range(60):
        draw = random.Random(seed)
        num_examples = draw.randint(1, 70)
        yield [draw.randint(1, draw.choice([1, 40, 256])) for _ in range(num_examples)], draw.randint(1, num_examples)


@pytest.mark.parametrize(("deal", "cost"), [(balance_by_tokens, tokens), (balance_by_padded_tokens, padded_tokens)])
def test_every_example_is_in_one_pack_costliest_first(deal, cost):
    for lengths, num_packs in draws():
        packs = deal(lengths, num_packs)
        assert len(packs) == num_packs
        assert all(packs)
        assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
        costs = [cost(lengths, pack) for pack in packs]
        assert costs == sorted(costs, reverse=True)


def test_packs_have_nearly_equal_tokens():
    for lengths, num_packs in draws():
        costs = [tokens(lengths, pack) for pack in balance_by_tokens(lengths, num_packs)]
        assert max(costs) - min(costs) <= max(lengths)


def test_costliest_padded_pack_is_as_small_as_possible():
    def best(lengths, num_packs):
        """By trying every cut of the sorted lengths."""
        if num_packs == 1:
            return lengths[0] * len(lengths)
        cuts = range(1, len(lengths) - num_packs + 2)
        return min(max(lengths[0] * cut, best(lengths[cut:], num_packs - 1)) for cut in cuts)

    for lengths, num_packs in draws():
        small, few = sorted(lengths[:9], reverse=True), min(num_packs, 4, len(lengths[:9]))
        packs = balance_by_padded_tokens(small, few)
        assert max(padded_tokens(small, pack) for pack in packs) == best(small, few)


def test_padded_packs_waste_less_than_token_packs():
    lengths = [random.Random(index).randint(20, 256) for index in range(64)]
    by_length, by_tokens = balance_by_padded_tokens(lengths, 8), balance_by_tokens(lengths, 8)
    assert sum(padded_tokens(lengths, pack) for pack in by_length) < 0.75 * sum(
        padded_tokens(lengths, pack) for pack in by_tokens
    )


class TestNewTokens:
    """Documents of one of a few beginnings and random tokens of their own."""

    @staticmethod
    def documents(draw, num_examples, beginnings):
        return [
            [*draw.choice(beginnings), *(draw.randint(100, 10**6) for _ in range(draw.randint(1, 30)))]
            for _ in range(num_examples)
        ]

    @staticmethod
    def new_tokens(documents, pack):
        order = sorted(pack, key=documents.__getitem__)
        shared = sum(num_alike(documents[a], documents[b]) for a, b in pairwise(order))
        return sum(len(documents[index]) for index in pack) - shared

    def draws(self):
        for seed in range(60):
            draw = random.Random(seed)
            num_examples = draw.randint(1, 40)
            beginnings = [[kind] * draw.randint(0, 40) for kind in range(draw.randint(1, 4))]
            num_devices = draw.choice([1, 1, 2, 4])
            num_packs = num_devices * draw.randint(1, max(1, num_examples // num_devices))
            if num_packs <= num_examples:
                yield self.documents(draw, num_examples, beginnings), num_packs, num_devices

    def deal(self, documents, num_packs, num_devices=1):
        def num_shared(before, place):
            return num_alike(documents[before], documents[place])

        lengths = [len(document) for document in documents]
        order = sorted(range(len(documents)), key=documents.__getitem__)
        return balance_by_new_tokens(lengths, order, num_shared, num_packs, num_devices)

    def test_every_example_is_in_one_pack_costliest_first(self):
        for documents, num_packs, num_devices in self.draws():
            packs = self.deal(documents, num_packs, num_devices)
            assert len(packs) == num_packs
            assert all(packs)
            assert sorted(index for pack in packs for index in pack) == list(range(len(documents)))
            costs = [self.new_tokens(documents, pack) for pack in packs]
            assert costs == sorted(costs, reverse=True)

    def test_devices_take_no_longer_than_by_tokens(self):
        def time(packs, documents, num_devices):
            costs = sorted((self.new_tokens(documents, pack) for pack in packs), reverse=True)
            return sum(costs[::num_devices])

        shorter = 0
        for documents, num_packs, num_devices in self.draws():
            even = balance_by_tokens([len(document) for document in documents], num_packs)
            times = [
                time(packs, documents, num_devices) for packs in (self.deal(documents, num_packs, num_devices), even)
            ]
            assert times[0] <= times[1]
            shorter += times[0] < times[1]
        assert shorter > 10

    def test_documents_that_begin_alike_stay_together(self):
        documents = [[kind] * 50 + [100 + number] for number in range(4) for kind in range(3)]
        kinds = [{index % 3 for index in pack} for pack in self.deal(documents, 3)]
        assert sorted(kinds, key=min) == [{0}, {1}, {2}]

    def test_waiting_devices_get_packs_of_like_size(self):
        documents = [[1] * 60, [2] * 8 + [3] * 92, [2] * 8 + [4] * 52]
        assert sorted(map(sorted, self.deal(documents, 2, num_devices=1))) == [[0], [1, 2]]
        assert sorted(map(sorted, self.deal(documents, 2, num_devices=2))) == [[0, 2], [1]]

    def test_unlike_documents_are_split_by_tokens(self):
        documents = [[1] * 60, [2] * 100, [3] * 60]  # a cut between neighbours would make a pack of 160
        assert sorted(map(sorted, self.deal(documents, 2))) == [[0, 2], [1]]

    def test_documents_that_begin_alike_spread_over_packs(self):
        alike = [[0] * 200 + [1000 + number] * 5 for number in range(32)]
        documents = [*alike, *([1 + number] * 205 for number in range(32))]
        even = sum(map(len, documents)) / 13
        packs = self.deal(documents, 13)
        assert max(tokens([205] * 64, pack) for pack in packs) <= 2 * (even + 205)
        assert sum(self.new_tokens(documents, pack) for pack in packs) < 0.65 * 13 * even


def num_alike(before, document):
    """How many tokens two documents begin with, without the last of the second."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, document[:-1], strict=False)))
