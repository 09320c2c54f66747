"""Public names that are imported on their first use: ``import bishare`` takes milliseconds, torch seconds."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: dict[str, Any], modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its ``globals()``.
        modules: The module that holds each public name.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        value = package[name] = getattr(importlib.import_module(modules[name]), name)
        return value

    def names() -> list[str]:
        return sorted({*package, *modules})

    return get, names
