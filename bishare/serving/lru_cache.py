"""A least-recently-used cache of a fixed number of bytes, safe for threads.

A missing value is built on demand. The least recently used values are evicted to make room. A value in use is pinned
and never evicted, and the bytes in the cache never exceed the budget: a thread that needs more room than unpinned
values can give waits, first come, first served.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, cast

from bishare.errors import UserError

T = TypeVar("T")


class Prepared(NamedTuple, Generic[T]):
    """A value to be built."""

    num_bytes: int
    """Size of the value; known before a byte is allocated."""
    build: Callable[[], T]


@dataclass(eq=False)
class _Item(Generic[T]):
    """A value in the cache, or a value being built."""

    value: T | None = None
    num_bytes: int = 0
    num_pins: int = 1  # the thread that builds the value
    ready: bool = False
    discarded: bool = False  # while in use


class LRUCache(Generic[T]):
    """Values by key.

    Args:
        budget: Bytes that all values together may take.
        name: Name of the option with the budget, for errors.
    """

    def __init__(self, budget: int, name: str) -> None:
        if budget < 1:
            raise UserError(f"{name} is {budget}; it must be a positive number of bytes.")
        self.budget, self.name = budget, name
        self.used = 0
        """Bytes in use now."""
        self.peak = 0
        """Highest number of bytes in use so far."""
        self._items: OrderedDict[Hashable, _Item[T]] = OrderedDict()  # least recently used first
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    @contextmanager
    def pin(self, key: Hashable, prepare: Callable[[], Prepared[T]]) -> Iterator[T]:
        """The value of ``key``, kept in the cache until the context ends.

        Args:
            key: Key of the value.
            prepare: Called for a missing value. Errors of ``prepare`` and ``build`` reach this caller alone.

        Raises:
            UserError: The value is larger than the whole budget.
        """
        item = self._find(key)
        if not item.ready:
            self._build(item, key, prepare)
        try:
            yield cast(T, item.value)
        finally:
            with self._changed:
                item.num_pins -= 1
                if item.discarded and not item.num_pins:
                    self._free(item)
                self._changed.notify_all()

    def discard(self, chosen: Callable[[Hashable], bool]) -> None:
        """Forget the chosen keys; a pinned value takes its bytes until the last pin ends."""
        with self._changed:
            for key in list(filter(chosen, self._items)):
                item = self._items.pop(key)
                item.discarded = True
                if not item.num_pins:
                    self._free(item)
            self._changed.notify_all()

    def _find(self, key: Hashable) -> _Item[T]:
        """The pinned item of ``key``; an item that is not ready is new, and the caller must build its value."""
        with self._changed:
            while (item := self._items.get(key)) is not None:
                if item.ready:
                    item.num_pins += 1
                    self._items.move_to_end(key)
                    return item
                self._changed.wait()  # another thread builds the value; if the build fails, the key is missing again
            self._items[key] = _Item()
            return self._items[key]

    def _build(self, item: _Item[T], key: Hashable, prepare: Callable[[], Prepared[T]]) -> None:
        # Without the lock: other threads read their values while this thread builds.
        try:
            num_bytes, build = prepare()
            self._reserve(item, num_bytes)
            item.value = build()
        except BaseException:
            with self._changed:
                if self._items.get(key) is item:  # a discarded key may have a new item
                    del self._items[key]
                self._free(item)
                self._changed.notify_all()
            raise
        with self._changed:
            item.ready = True
            self._changed.notify_all()

    def _reserve(self, item: _Item[T], num_bytes: int) -> None:
        """Wait until the budget has room, and take the bytes."""
        if num_bytes > self.budget:
            raise UserError(f"{num_bytes:,} bytes are needed at once, but {self.name} is {self.budget:,}; raise it.")
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                # In turn: otherwise small requests could take the room for which a large request waits, forever.
                while self._queue[0] is not ticket or not self._evict(num_bytes):
                    self._changed.wait()
                item.num_bytes = num_bytes
                self.used += num_bytes
                self.peak = max(self.peak, self.used)
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _evict(self, num_bytes: int) -> bool:
        """Evict unpinned values until ``num_bytes`` fit; whether the bytes fit now."""
        for key, item in list(self._items.items()):
            if self.used + num_bytes <= self.budget:
                break
            if not item.num_pins:
                del self._items[key]
                self._free(item)
        return self.used + num_bytes <= self.budget

    def _free(self, item: _Item[T]) -> None:
        self.used -= item.num_bytes
        item.value, item.num_bytes = None, 0
