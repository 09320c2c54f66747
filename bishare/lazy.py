"""Public names imported on first use: ``import bishare`` takes milliseconds, ``import torch`` seconds."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: dict[str, Any], modules: Callable[[], Mapping[str, str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: ``globals()`` of the package.
        modules: Gives the module of each public name; called for each name, since names may be added.
    """

    def get(name: str) -> Any:
        module = modules().get(name)
        if module is None:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        value = package[name] = getattr(importlib.import_module(module), name)
        return value

    def names() -> list[str]:
        return sorted({*package, *modules()})

    return get, names
