"""Callbacks of a training: a callback picks the moment and logs; the mathematics is in ``bishare``.

The modules import each other relatively: every class is loaded once, as a part of ``bishare.callbacks``.
"""

from bishare.callback_names import install

if __name__ == "callbacks":  # a clone has this folder at its top, where Python finds it under its own name
    install()
else:
    from .checkpoint import AdapterCheckpoint
    from .gradient_norm import GradientNorm
    from .learning_rate import LearningRate
    from .merging import AdaptiveMerging
    from .parameters import ParameterCount
    from .predictions import PredictionWriter
    from .ranks import RankMonitor
    from .result import ResultFile
    from .samples import SampleAnswers
    from .summary import RunSummary
    from .throughput import Throughput

__all__ = [
    "AdapterCheckpoint",
    "AdaptiveMerging",
    "GradientNorm",
    "LearningRate",
    "ParameterCount",
    "PredictionWriter",
    "RankMonitor",
    "ResultFile",
    "RunSummary",
    "SampleAnswers",
    "Throughput",
]
