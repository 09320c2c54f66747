"""Names of a package are imported on first use."""

import sys
from collections.abc import Iterator

import pytest

from bishare.lazy import lazy

MODULE = "this"  # of the standard library, and imported by nothing else


@pytest.fixture(autouse=True)
def _unloaded(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    sys.modules.pop(MODULE, None)
    yield
    sys.modules.pop(MODULE, None)


def test_module_is_imported_on_first_use() -> None:
    package = {"__name__": "mine"}
    get, _ = lazy(package, lambda: {"s": MODULE})
    assert MODULE not in sys.modules
    value = get("s")
    assert value is sys.modules[MODULE].s
    assert package["s"] is value, "the second use finds the name in the package"


def test_unknown_name_is_an_attribute_error() -> None:
    get, _ = lazy({"__name__": "mine"}, lambda: {"s": MODULE})
    with pytest.raises(AttributeError, match="module 'mine' has no attribute 't'"):
        get("t")
    assert MODULE not in sys.modules


def test_names_are_listed_without_an_import() -> None:
    _, names = lazy({"__name__": "mine", "other": 1}, lambda: {"s": MODULE})
    assert names() == ["__name__", "other", "s"]
    assert MODULE not in sys.modules


def test_names_may_be_added_later() -> None:
    modules: dict[str, str] = {}
    get, names = lazy({"__name__": "mine"}, lambda: modules)
    assert "s" not in names()
    modules["s"] = MODULE
    assert "s" in names()
    assert get("s") is sys.modules[MODULE].s
