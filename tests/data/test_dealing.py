import random

import pytest

from bishare.data.dealing import deal_by_padded_tokens, deal_by_tokens


def tokens(lengths, pack):
    return sum(lengths[index] for index in pack)


def padded_tokens(lengths, pack):
    return len(pack) * max(lengths[index] for index in pack)


def draws():
    for seed in range(60):
        draw = random.Random(seed)
        num_examples = draw.randint(1, 70)
        yield [draw.randint(1, draw.choice([1, 40, 256])) for _ in range(num_examples)], draw.randint(1, num_examples)


@pytest.mark.parametrize(("deal", "cost"), [(deal_by_tokens, tokens), (deal_by_padded_tokens, padded_tokens)])
def test_every_example_is_in_one_pack_none_is_empty_and_the_costliest_comes_first(deal, cost):
    for lengths, num_packs in draws():
        packs = deal(lengths, num_packs)
        assert len(packs) == num_packs
        assert all(packs)
        assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
        costs = [cost(lengths, pack) for pack in packs]
        assert costs == sorted(costs, reverse=True)


def test_packs_have_nearly_equal_tokens():
    for lengths, num_packs in draws():
        costs = [tokens(lengths, pack) for pack in deal_by_tokens(lengths, num_packs)]
        assert max(costs) - min(costs) <= max(lengths)


def test_the_costliest_padded_pack_is_as_small_as_a_cut_by_length_can_make_it():
    def best(lengths, num_packs):
        """By trying every cut of the sorted lengths."""
        if num_packs == 1:
            return lengths[0] * len(lengths)
        cuts = range(1, len(lengths) - num_packs + 2)
        return min(max(lengths[0] * cut, best(lengths[cut:], num_packs - 1)) for cut in cuts)

    for lengths, num_packs in draws():
        small, few = sorted(lengths[:9], reverse=True), min(num_packs, 4, len(lengths[:9]))
        packs = deal_by_padded_tokens(small, few)
        assert max(padded_tokens(small, pack) for pack in packs) == best(small, few)


def test_padded_packs_waste_less_than_packs_dealt_by_tokens():
    lengths = [random.Random(index).randint(20, 256) for index in range(64)]
    by_length, by_tokens = deal_by_padded_tokens(lengths, 8), deal_by_tokens(lengths, 8)
    assert sum(padded_tokens(lengths, pack) for pack in by_length) < 0.75 * sum(
        padded_tokens(lengths, pack) for pack in by_tokens
    )
