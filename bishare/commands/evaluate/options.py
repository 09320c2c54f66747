"""The options of ``evaluate``."""

from dataclasses import dataclass
from typing import Literal

from bishare.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """The adapter to score, the questions, and the way to run the model."""

    adapter: str
    """Folder of the adapter."""
    suite: str
    """``commonsense`` (eight tasks), ``mmlu`` or ``gsm8k``."""
    shots: int | None = None
    """Examples before every question; by default 0, for gsm8k 5."""
    limit: int | None = None
    """Questions of each task (for mmlu: of each subject), counted from the first; all by default."""
    data: str | None = None
    """Folder of local rows instead of the hub's data; nothing is then downloaded, a base from the hub must be in the
    cache, and the scores are those of the local sample."""
    base: str | None = None
    """Path or name of the base model, if the adapter's file names an outdated place."""
    with_base: bool = False
    """Score the base model without the adapter too; the time doubles."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; by default float32 on a CPU and bfloat16 elsewhere."""
    batch_size: int = 16
    """Requests in each forward pass of the model."""
    out: str | None = None
    """Folder for the results; by default ``evaluation`` beside the adapter's folder."""

    def __post_init__(self) -> None:
        for name, least in {"shots": 0, "limit": 1, "batch_size": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}.")
