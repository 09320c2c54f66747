"""Partitions the examples of an optimizer step into non-empty packs of nearly equal cost.

``balance_by_tokens`` is longest-processing-time scheduling (Graham, 1969).

The cost of a pack is the number of tokens that the device computes. Packed documents cost their own tokens, with a
common prefix counted once. Padded rows cost the number of rows times the longest row. Each function returns positions
of examples, [num_packs] lists, the costliest pack first: packs that run at the same time on several devices are then
neighbours in cost.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate, pairwise


def balance_by_tokens(lengths: Sequence[int], num_packs: int) -> list[list[int]]:
    """Give each example, the longest first, to the pack with the fewest tokens.

    The fullest pack has at most 4/3 of the tokens of the best partition (Graham, 1969).
    """
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    # A heap of (tokens, pack). Lengths are positive: an empty pack has the fewest tokens and is filled first.
    tokens = list(zip([0] * num_packs, range(num_packs), strict=True))
    for index in _longest_first(lengths):
        total, number = heapq.heappop(tokens)
        packs[number].append(index)
        heapq.heappush(tokens, (total + lengths[index], number))
    return [packs[number] for _, number in sorted(tokens, reverse=True)]


def balance_by_padded_tokens(lengths: Sequence[int], num_packs: int) -> list[list[int]]:
    """Cut the examples, sorted by length, where the costliest padded pack is as small as possible."""
    order = _longest_first(lengths)
    # The first example of a pack is its longest and gives the padded width.
    return _cut(order, lambda pack: len(pack) * lengths[order[pack[0]]], num_packs)


def balance_by_new_tokens(
    lengths: Sequence[int],
    order: Sequence[int],
    num_shared: Callable[[int, int], int],
    num_packs: int,
    num_devices: int = 1,
) -> list[list[int]]:
    """Put documents with a common prefix together, or balance by tokens where the devices are as fast with that.

    Cost is the number of new tokens. While packs are cut, a pack whose documents are mostly shared prefix costs half
    of its whole length. This bounds memory: attention holds keys and values of whole documents.

    Args:
        lengths: Tokens of the documents.
        order: Positions of the documents, documents with a common prefix being neighbours.
        num_shared: Tokens of the second of two documents that need not be repeated after the first document.
        num_packs: A multiple of the devices.
        num_devices: Packs that run at the same time; the costliest of them decides the time of all.
    """
    shared = cache(num_shared)
    place_of = dict(zip(order, range(len(order)), strict=True))
    # Running sums make the cost of a run of neighbours a difference of two entries.
    tokens = [0, *accumulate(map(lengths.__getitem__, order))]  # of all documents before a place
    spared = [0, *accumulate(shared(*pair) for pair in pairwise(order))]  # by the documents up to a place

    def cost_of_run(pack: range) -> int:
        whole = tokens[pack.stop] - tokens[pack.start]
        return max(whole - (spared[pack[-1]] - spared[pack.start]), whole // 2)

    def cost(pack: Iterable[int]) -> int:
        documents = sorted(pack, key=place_of.__getitem__)
        return sum(map(lengths.__getitem__, documents)) - sum(map(shared, documents, documents[1:]))

    def time_and_peak(packs: Sequence[list[int]]) -> tuple[int, int]:
        # The costliest pack of each round of devices comes first in its round.
        return sum(map(cost, packs[::num_devices])), cost(packs[0])

    by_tokens = sorted(balance_by_tokens(lengths, num_packs), key=cost, reverse=True)
    by_prefix = sorted(_cut(order, cost_of_run, num_packs), key=cost, reverse=True)
    return min(by_tokens, by_prefix, key=time_and_peak)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _cut(order: Sequence[int], cost: Callable[[range], int], num_packs: int) -> list[list[int]]:
    """Cut an order of examples where the costliest pack is as small as possible, the costliest pack first.

    Args:
        order: Positions of the examples.
        cost: Cost of a pack, given by its places in the order; a longer pack costs no less.
        num_packs: Number of packs to make.
    """
    places = range(len(order))
    # Bisection: the smallest capacity that num_packs packs can keep.
    low, high = max(cost(places[place : place + 1]) for place in places), cost(places)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(places, cost, middle)) <= num_packs:
            high = middle
        else:
            low = middle + 1
    packs = _fill(places, cost, low)
    while len(packs) < num_packs:  # fewer packs may do: halve the costliest until all are there
        packs.sort(key=lambda pack: (len(pack) > 1, cost(pack)))
        largest = packs.pop()
        packs += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    packs.sort(key=cost, reverse=True)
    return [list(map(order.__getitem__, pack)) for pack in packs]


def _fill(places: range, cost: Callable[[range], int], capacity: int) -> list[range]:
    """Consecutive packs that cost at most ``capacity`` each."""
    packs, first = [], places[0]
    for place in places:
        if place > first and cost(places[first : place + 1]) > capacity:
            packs.append(places[first:place])
            first = place
    return [*packs, places[first:]]
