"""Data modules, by the names in configurations."""

from typing import TYPE_CHECKING

from bishare.lazy import lazy

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

__getattr__, __dir__ = lazy(globals(), lambda: _MODULES)
