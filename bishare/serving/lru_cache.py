"""A shelf of a fixed number of bytes: what is asked for is made, what was not used for longest makes room.

Safe for threads. A value in use is never dropped, and the bytes on the shelf never exceed its budget: whoever needs
room that is in use waits for it, first come, first served.
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
    """A value that is about to be made."""

    num_bytes: int
    """What it will take; known before a byte of it is allocated."""
    build: Callable[[], T]


@dataclass(eq=False)
class _Place(Generic[T]):
    value: T | None = None
    num_bytes: int = 0
    pins: int = 1  # whoever makes it
    ready: bool = False
    gone: bool = False  # discarded while in use


class Shelf(Generic[T]):
    """Values by key.

    Args:
        budget: Bytes that all values together may take.
        name: The option that sets the budget, for errors.
    """

    def __init__(self, budget: int, name: str) -> None:
        if budget < 1:
            raise UserError(f"{name} is {budget}; it must be a positive number of bytes.")
        self.budget, self.name = budget, name
        self.used = 0
        """Bytes taken now."""
        self.peak = 0
        """The most bytes that were ever taken."""
        self._places: OrderedDict[Hashable, _Place[T]] = OrderedDict()  # least recently used first
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def hold(self, key: Hashable, prepare: Callable[[], Prepared[T]]) -> Iterator[T]:
        """The value of ``key``, which stays on the shelf for as long as the context lasts.

        Args:
            key: Its name.
            prepare: Called if it is not there; what this or ``build`` raises reaches the caller, and nobody else.

        Raises:
            UserError: It is larger than the whole shelf.
        """
        place = self._find(key)
        if not place.ready:
            self._make(place, key, prepare)
        try:
            yield cast(T, place.value)
        finally:
            with self._changed:
                place.pins -= 1
                if place.gone and not place.pins:
                    self._free(place)
                self._changed.notify_all()

    def discard(self, chosen: Callable[[Hashable], bool]) -> None:
        """Forget the chosen keys; a value in use takes its bytes until it is let go."""
        with self._changed:
            for key in [key for key in self._places if chosen(key)]:
                place = self._places.pop(key)
                place.gone = True
                if not place.pins:
                    self._free(place)
            self._changed.notify_all()

    def _find(self, key: Hashable) -> _Place[T]:
        """The place of ``key``, pinned; it is new and not ready if the caller is to make the value."""
        with self._changed:
            while (place := self._places.get(key)) is not None:
                if place.ready:
                    place.pins += 1
                    self._places.move_to_end(key)
                    return place
                self._changed.wait()  # somebody is making it; if that fails, the key is gone again
            self._places[key] = _Place()
            return self._places[key]

    def _make(self, place: _Place[T], key: Hashable, prepare: Callable[[], Prepared[T]]) -> None:
        try:
            num_bytes, build = prepare()
            self._reserve(place, num_bytes)
            place.value = build()
        except BaseException:
            with self._changed:
                if self._places.get(key) is place:
                    del self._places[key]
                self._free(place)
                self._changed.notify_all()
            raise
        with self._changed:
            place.ready = True
            self._changed.notify_all()

    def _reserve(self, place: _Place[T], num_bytes: int) -> None:
        if num_bytes > self.budget:
            raise UserError(f"{num_bytes:,} bytes are needed at once, but {self.name} is {self.budget:,}; raise it.")
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                # In turn, or small requests would for ever take the room that a large one waits for.
                while self._queue[0] is not ticket or not self._make_room(num_bytes):
                    self._changed.wait()
                place.num_bytes = num_bytes
                self.used += num_bytes
                self.peak = max(self.peak, self.used)
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _make_room(self, num_bytes: int) -> bool:
        for key, place in list(self._places.items()):
            if self.used + num_bytes <= self.budget:
                break
            if not place.pins:
                del self._places[key]
                self._free(place)
        return self.used + num_bytes <= self.budget

    def _free(self, place: _Place[T]) -> None:
        self.used -= place.num_bytes
        place.value, place.num_bytes = None, 0
