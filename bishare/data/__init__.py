"""Data modules, under the names that configurations use."""

from bishare.data.instruct import InstructionData
from bishare.data.pydocs import PyDocsData

__all__ = ["InstructionData", "PyDocsData"]
