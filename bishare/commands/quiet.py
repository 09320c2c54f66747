"""Silences useless messages of third-party packages, each by its words."""

import logging
import sys
import warnings

from transformers.utils import logging as transformers_logging
from typing_extensions import override

_LOGGED = {
    # Advertisements, and a note on the absence of TPUs.
    "lightning.pytorch.utilities.rank_zero": ("💡 Tip: ", "TPU available: False"),
    # DeepSpeed is imported by accelerate even where it is not used.
    "DeepSpeed": ("Setting accelerator to CPU",),
}

_WARNED = (
    r".*does not have many workers which may be a bottleneck.*",
    # Every resume: the run folder holds the resumed checkpoint.
    r"Checkpoint directory .* exists and is not empty.*",
    # Deprecated functions of torch inside Lightning and DeepSpeed.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"`torch\.distributed\.\w+` is deprecated.*",
    # The targets are a few thousand numbers.
    r"Metric `SpearmanCorrcoef` will save all targets.*",
    # A fresh model predicts the same for all examples.
    r"The variance of predictions or target is close to zero.*",
    # torchmetrics' adjusted Rand index makes a sparse table of counts.
    r"Sparse invariant checks are implicitly disabled.*",
    # Validation metrics are reduced over the ranks before logging.
    r"It is recommended to use `self.log\('val/.*sync_dist=True.*",
)


class _Without(logging.Filter):
    """Drops messages with one of some beginnings."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def silence_known_noise() -> None:
    """Install the filters, and turn loading bars off outside a terminal."""
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    for logger, beginnings in _LOGGED.items():
        logging.getLogger(logger).addFilter(_Without(beginnings))
    for message in _WARNED:
        warnings.filterwarnings("ignore", message)
