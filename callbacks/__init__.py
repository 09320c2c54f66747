"""What happens around a training: each callback picks the moment and logs; the mathematics is in ``bishare``."""

from callbacks.checkpoint import AdapterCheckpoint
from callbacks.merging import AdaptiveMerging
from callbacks.parameters import ParameterCount
from callbacks.predictions import PredictionWriter
from callbacks.ranks import RankMonitor
from callbacks.result import ResultFile
from callbacks.samples import SampleAnswers
from callbacks.summary import RunSummary
from callbacks.throughput import Throughput

__all__ = [
    "AdapterCheckpoint",
    "AdaptiveMerging",
    "ParameterCount",
    "PredictionWriter",
    "RankMonitor",
    "ResultFile",
    "RunSummary",
    "SampleAnswers",
    "Throughput",
]
