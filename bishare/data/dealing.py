"""Deals the examples of one optimizer step into packs that cost nearly the same, none of them empty.

What a pack costs is what the device computes: the tokens of its examples where they are packed without padding, those
that several begin with once, or rows times the longest where they are padded. Each function returns positions, the
costliest pack first, so that packs that run side by side on several devices are neighbours in cost.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise


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
    return _cut(order, lambda first, _: lengths[order[first]], num_packs)


def deal_by_new_tokens(
    documents: Sequence[list[int]], num_shared: Callable[[int, int], int], num_packs: int, num_devices: int = 1
) -> list[list[int]]:
    """Put documents that begin alike together, or deal by tokens if devices would wait longer than that saves.

    Args:
        documents: Tokens of the examples.
        num_shared: How many tokens the second of two documents need not repeat behind the first.
        num_packs: A multiple of the devices.
        num_devices: Packs that run side by side; the costliest of them takes the time of all.
    """
    shared = cache(num_shared)
    lengths = [len(document) for document in documents]

    def by_beginning(pack: Iterable[int]) -> list[int]:
        return sorted(pack, key=documents.__getitem__)

    def cost(pack: Iterable[int]) -> int:
        order = by_beginning(pack)
        return sum(lengths[index] for index in order) - sum(map(shared, order, order[1:]))

    def time(packs: Iterable[list[int]]) -> int:
        return sum(sorted(map(cost, packs), reverse=True)[::num_devices])

    order = by_beginning(range(len(documents)))
    added = [0, *(lengths[index] - shared(before, index) for before, index in pairwise(order))]
    alike = _cut(order, lambda first, place: added[place] if place > first else lengths[order[place]], num_packs)
    return sorted(min(alike, deal_by_tokens(lengths, num_packs), key=time), key=cost, reverse=True)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _cut(order: Sequence[int], added: Callable[[int, int], int], num_packs: int) -> list[list[int]]:
    """Cut an order of examples where the costliest pack is as small as it can be, the costliest pack first.

    Args:
        order: Positions of the examples.
        added: What the example at the second place of the order costs in a pack that begins at the first.
        num_packs: How many packs to make.
    """

    def cost(pack: range) -> int:
        return sum(added(pack[0], place) for place in pack)

    places = range(len(order))
    low, high = max(added(place, place) for place in places), cost(places)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(places, added, middle)) <= num_packs:
            high = middle
        else:
            low = middle + 1
    packs = _fill(places, added, low)
    while len(packs) < num_packs:  # the smallest capacity may leave packs over
        packs.sort(key=lambda pack: (len(pack) > 1, cost(pack)))
        largest = packs.pop()
        packs += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return [[order[place] for place in pack] for pack in sorted(packs, key=cost, reverse=True)]


def _fill(places: range, added: Callable[[int, int], int], capacity: int) -> list[range]:
    """Consecutive packs that cost at most ``capacity`` each."""
    packs, first, total = [], places[0], 0
    for place in places:
        total += added(first, place)
        if total > capacity and place > first:
            packs.append(range(first, place))
            first, total = place, added(place, place)
    return [*packs, range(first, places[-1] + 1)]
