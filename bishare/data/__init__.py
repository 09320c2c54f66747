"""Data modules, under the names that configurations use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bishare.data.classification import ClassificationData
    from bishare.data.instruct import InstructionData
    from bishare.data.mixed import MixedData
    from bishare.data.pydocs import PyDocsData
    from bishare.data.streamed import StreamedData

__all__ = ["ClassificationData", "InstructionData", "MixedData", "PyDocsData", "StreamedData"]

_MODULES = {
    "ClassificationData": "bishare.data.classification",
    "InstructionData": "bishare.data.instruct",
    "MixedData": "bishare.data.mixed",
    "PyDocsData": "bishare.data.pydocs",
    "StreamedData": "bishare.data.streamed",
}


def __getattr__(name: str) -> Any:
    """Import a data module on its first use: they need Lightning, which `plan` does not wait for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
