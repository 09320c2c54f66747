"""Data modules, under the names that configurations use."""

from bishare.data.classification import ClassificationData
from bishare.data.instruct import InstructionData
from bishare.data.mixed import MixedData
from bishare.data.pydocs import PyDocsData
from bishare.data.streamed import StreamedData

__all__ = ["ClassificationData", "InstructionData", "MixedData", "PyDocsData", "StreamedData"]
