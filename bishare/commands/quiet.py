"""Silences messages of other packages that tell a user nothing, each by its own words."""

import logging
import sys
import warnings

from transformers.utils import logging as transformers_logging
from typing_extensions import override

_LOGGED = {
    # Advertisements, and the absence of a device that nobody asked for.
    "lightning.pytorch.utilities.rank_zero": ("💡 Tip: ", "TPU available: False"),
    # DeepSpeed is imported by accelerate even where it is not used.
    "DeepSpeed": ("Setting accelerator to CPU",),
}

_WARNED = (
    r".*does not have many workers which may be a bottleneck.*",
    # Said of every resume: the run folder holds the checkpoint that is resumed.
    r"Checkpoint directory .* exists and is not empty.*",
    # Lightning's own use of torch, and DeepSpeed's.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"`torch\.distributed\.\w+` is deprecated.*",
    # A few thousand numbers.
    r"Metric `SpearmanCorrcoef` will save all targets.*",
    # Of a model that predicts the same for all, as a fresh one does.
    r"The variance of predictions or target is close to zero.*",
    # torchmetrics' adjusted Rand index puts a table of counts into one.
    r"Sparse invariant checks are implicitly disabled.*",
    # The validation metrics are reduced over the ranks before they are logged.
    r"It is recommended to use `self.log\('val/.*sync_dist=True.*",
)


class _Without(logging.Filter):
    """Lets pass what does not begin with any of these words."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def silence_known_noise() -> None:
    """Install the filters, and leave out loading bars where nobody watches them move."""
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    for logger, beginnings in _LOGGED.items():
        logging.getLogger(logger).addFilter(_Without(beginnings))
    for message in _WARNED:
        warnings.filterwarnings("ignore", message)
