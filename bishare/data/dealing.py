"""Deals the examples of one optimizer step into packs that cost nearly the same, none of them empty.

What a pack costs is what the device computes: the sum of its examples' tokens where they are packed without padding,
or rows times the longest where they are padded. Each function takes lengths and returns positions, the costliest pack
first, so that packs that run side by side on several devices are neighbours in cost.
"""

import heapq
from collections.abc import Sequence


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

    def cost(pack: list[int]) -> int:
        return lengths[pack[0]] * len(pack)

    order = _longest_first(lengths)
    low, high = lengths[order[0]], lengths[order[0]] * len(order)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(lengths, order, middle)) <= num_packs:
            high = middle
        else:
            low = middle + 1
    packs = _fill(lengths, order, low)
    while len(packs) < num_packs:  # the smallest capacity may leave packs over
        packs.sort(key=lambda pack: (len(pack) > 1, cost(pack)))
        largest = packs.pop()
        packs += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return sorted(packs, key=cost, reverse=True)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _fill(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Consecutive packs of at most ``capacity`` padded tokens."""
    packs: list[list[int]] = [[order[0]]]
    for index in order[1:]:
        if lengths[packs[-1][0]] * (len(packs[-1]) + 1) > capacity:
            packs.append([])
        packs[-1].append(index)
    return packs
