"""Deals the examples of one optimizer step into packs that cost nearly the same, none of them empty.

What a pack costs is what the device computes: the tokens of its examples where they are packed without padding, those
that several begin with once, or rows times the longest where they are padded. Each function returns positions, the
costliest pack first, so that packs that run side by side on several devices are neighbours in cost.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate, pairwise


def deal_by_tokens(lengths: Sequence[int], num_packs: int) -> list[list[int]]:
    """Give each example, the longest first, to the pack with the fewest tokens.

    The fullest pack has at most 4/3 of the tokens of the best deal (Graham, 1969).
    """
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    tokens = [(0, place) for place in range(num_packs)]  # a heap; lengths are positive, so no pack stays at 0
    for index in _longest_first(lengths):
        total, place = heapq.heappop(tokens)
        packs[place].append(index)
        heapq.heappush(tokens, (total + lengths[index], place))
    return [packs[place] for _, place in sorted(tokens, reverse=True)]


def deal_by_padded_tokens(lengths: Sequence[int], num_packs: int) -> list[list[int]]:
    """Cut the examples, sorted by length, where the costliest padded pack is as small as it can be."""
    order = _longest_first(lengths)
    return _cut(order, lambda pack: len(pack) * lengths[order[pack[0]]], num_packs)


def deal_by_new_tokens(
    lengths: Sequence[int],
    order: Sequence[int],
    num_shared: Callable[[int, int], int],
    num_packs: int,
    num_devices: int = 1,
) -> list[list[int]]:
    """Put documents that begin alike together, or deal by tokens where that takes the devices no longer.

    A pack computes its new tokens, but holds keys and values of whole documents for a while: one that shares most of
    its tokens counts as half of all of them, so that none has many more documents than there is memory for.

    Args:
        lengths: Tokens of the documents.
        order: Their positions, such that those that begin alike are neighbours.
        num_shared: How many tokens the second of two documents need not repeat behind the first.
        num_packs: A multiple of the devices.
        num_devices: Packs that run side by side; the costliest of them takes the time of all.
    """
    shared = cache(num_shared)
    place_of = {index: place for place, index in enumerate(order)}
    tokens = [0, *accumulate(lengths[index] for index in order)]  # of all documents before a place
    spared = [0, *accumulate(shared(*pair) for pair in pairwise(order))]  # by those up to a place

    def cost_of_run(pack: range) -> int:
        whole = tokens[pack.stop] - tokens[pack.start]
        return max(whole - (spared[pack[-1]] - spared[pack.start]), whole // 2)

    def cost(pack: Iterable[int]) -> int:
        documents = sorted(pack, key=place_of.__getitem__)
        return sum(lengths[index] for index in documents) - sum(map(shared, documents, documents[1:]))

    def time_and_peak(packs: Sequence[list[int]]) -> tuple[int, int]:
        return sum(map(cost, packs[::num_devices])), cost(packs[0])

    deals = deal_by_tokens(lengths, num_packs), _cut(order, cost_of_run, num_packs)
    return min((sorted(packs, key=cost, reverse=True) for packs in deals), key=time_and_peak)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _cut(order: Sequence[int], cost: Callable[[range], int], num_packs: int) -> list[list[int]]:
    """Cut an order of examples where the costliest pack is as small as it can be, the costliest pack first.

    Args:
        order: Positions of the examples.
        cost: Of a pack, given by its places in the order; no smaller for a longer one.
        num_packs: How many packs to make.
    """
    places = range(len(order))
    low, high = max(cost(places[place : place + 1]) for place in places), cost(places)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(places, cost, middle)) <= num_packs:
            high = middle
        else:
            low = middle + 1
    packs = _fill(places, cost, low)
    while len(packs) < num_packs:  # the smallest capacity may leave packs over
        packs.sort(key=lambda pack: (len(pack) > 1, cost(pack)))
        largest = packs.pop()
        packs += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return [[order[place] for place in pack] for pack in sorted(packs, key=cost, reverse=True)]


def _fill(places: range, cost: Callable[[range], int], capacity: int) -> list[range]:
    """Consecutive packs that cost at most ``capacity`` each."""
    packs, first = [], places[0]
    for place in places:
        if place > first and cost(places[first : place + 1]) > capacity:
            packs.append(places[first:place])
            first = place
    return [*packs, places[first:]]
