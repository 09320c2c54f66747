"""The cache keeps what is used, drops what is not, and waits rather than exceed its budget."""

import threading

import pytest

from bishare.errors import UserError
from bishare.serving.lru_cache import LRUCache, Prepared


def value(name: str, num_bytes: int = 1) -> Prepared[str]:
    return Prepared(num_bytes, lambda: name)


def put(cache: LRUCache[str], name: str, num_bytes: int = 1) -> None:
    with cache.pin(name, lambda: value(name, num_bytes)) as found:
        assert found == name


def test_least_recently_used_value_makes_room() -> None:
    cache: LRUCache[str] = LRUCache(2, "budget")
    for name in ("a", "b", "a", "c"):
        put(cache, name)
    assert (cache.used, cache.peak) == (2, 2)
    made: list[str] = []
    for name in ("a", "c", "b"):
        with cache.pin(name, lambda name=name: made.append(name) or value(name)):
            pass
    assert made == ["b"]


def test_value_in_use_is_not_dropped() -> None:
    cache: LRUCache[str] = LRUCache(2, "budget")
    got = threading.Event()
    with cache.pin("a", lambda: value("a", 2)):
        thread = threading.Thread(target=lambda: (put(cache, "b"), got.set()))
        thread.start()
        assert not got.wait(0.1)
        assert cache.used == 2
    thread.join(timeout=10)
    assert got.is_set()
    assert cache.peak == 2


def test_small_requests_do_not_overtake_a_large() -> None:
    cache: LRUCache[str] = LRUCache(2, "budget")
    order: list[str] = []
    with cache.pin("a", lambda: value("a")):
        large = threading.Thread(target=lambda: (put(cache, "large", 2), order.append("large")))
        large.start()
        while not cache._queue:
            pass
        small = threading.Thread(target=lambda: (put(cache, "small"), order.append("small")))
        small.start()
        small.join(timeout=0.1)
        assert order == []
    large.join(timeout=10)
    small.join(timeout=10)
    assert sorted(order) == ["large", "small"]


def test_failure_reaches_its_caller_without_bytes_left() -> None:
    cache: LRUCache[str] = LRUCache(2, "budget")

    def fail() -> str:
        raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"), cache.pin("a", lambda: Prepared(2, fail)):
        pass
    assert (cache.used, len(cache)) == (0, 0)
    put(cache, "a", 2)


def test_threads_make_a_common_value_once() -> None:
    cache: LRUCache[str] = LRUCache(2, "budget")
    made: list[int] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        with cache.pin("a", lambda: made.append(1) or value("a")) as found:
            assert found == "a"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert made == [1]


def test_discarded_value_counts_while_in_use() -> None:
    cache: LRUCache[str] = LRUCache(2, "budget")
    with cache.pin("a", lambda: value("a", 2)) as found:
        cache.discard(lambda key: key == "a")
        assert (cache.used, found) == (2, "a")
    assert cache.used == 0


def test_value_larger_than_the_cache_is_an_error() -> None:
    cache: LRUCache[str] = LRUCache(2, "budget")
    with pytest.raises(UserError, match="3 bytes are needed at once, but budget is 2; raise it"):
        put(cache, "a", 3)


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(UserError, match="budget is 0"):
        LRUCache(0, "budget")
