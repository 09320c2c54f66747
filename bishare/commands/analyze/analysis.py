"""The measures of ``analyze`` on an adapter, and on a text with the adapter's base model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from rich.progress import Progress
from transformers import PreTrainedModel

from bishare.adapters.base import Adapter
from bishare.adapters.checkpoint import AdapterFile, read_adapter, read_whole_adapter
from bishare.adapters.factors import Factors, Slot
from bishare.adapters.uses import check_use
from bishare.analysis.contribution import LevelLosses, level_losses, norm_shares, num_passes
from bishare.analysis.differences import Differences, compare_adapters
from bishare.analysis.levels import WHOLE, measure_levels, updates_by_level
from bishare.analysis.ranks import UpdateRank
from bishare.analysis.similarity.activations import outputs_of_updates
from bishare.analysis.similarity.layers import Similarity, num_steps, similarity
from bishare.analysis.similarity.null import random_updates
from bishare.commands.analyze.text import documents, loss_on, read_text
from bishare.data.examples import Examples
from bishare.data.prompts import Prompt
from bishare.errors import UserError
from bishare.models.attach import load_adapter
from bishare.models.dtypes import Dtype
from bishare.models.loading import load_base, load_tokenizer
from bishare.models.packed_attention import use_packed_attention


@dataclass(frozen=True, kw_only=True)
class Options:
    """The adapter to look at, a second adapter, and a text."""

    adapter: str
    """Folder of the adapter."""
    against: str | None = None
    """Folder of a second adapter of the same base, to be compared weight by weight."""
    out: str | None = None
    """Folder for analysis.json and the pictures; by default ``analysis`` beside the adapter's folder."""
    data: str | None = None
    """Text for the similarity of the updates' outputs, and for the loss with levels switched off: rows as for training
    in a file, a folder or on the hub. The base model is loaded only with a text."""
    num_rows: int = 32
    """Rows of ``data`` to read, counted from the first."""
    max_length: int = 256
    """Tokens of each row."""
    prompt: Prompt = "alpaca"
    """Wording of an instruction, as in training: ``alpaca`` or ``chat``."""
    base: str | None = None
    """Path or name of the base model, if the adapter's file names an outdated place."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the base model's weights; by default float32 on a CPU and bfloat16 elsewhere."""

    def __post_init__(self) -> None:
        for name, least in {"num_rows": 1, "max_length": 2}.items():
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Similarity of an adapter, and similarity of random factors of the same spread."""

    mine: Similarity
    random: Similarity


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All measures of an adapter."""

    adapter: str
    against: str | None
    method: str
    base: str
    num_parameters: int
    levels: Mapping[str, Mapping[Slot, Factors]]
    ranks: Mapping[str, Mapping[Slot, UpdateRank]]
    norm_shares: Mapping[str, Mapping[Slot, float]]
    updates: Beside
    outputs: Beside | None
    """Similarity of the updates' outputs on the given text."""
    losses: LevelLosses | None
    differences: Differences | None


def analyze(options: Options, progress: Progress | None = None) -> Analysis:
    """Look inside an adapter.

    Args:
        options: The adapter, a second adapter, and a text.
        progress: A bar to advance.

    Raises:
        UserError: An adapter can't be read, was never trained or belongs to another base; or as :func:`read_text`.
    """
    file, adapter = read_adapter(options.adapter), read_whole_adapter(options.adapter)
    levels, ranks = updates_by_level(adapter), measure_levels(adapter)
    if not any(map(_has_update, ranks.values())):
        raise UserError(f"{options.adapter} is zero in every weight: the adapter is untrained; train it first.")
    whole = levels.get(WHOLE) or next(iter(levels.values()))
    differences = None
    if options.against is not None:
        differences = _differences(whole, options.against)
    num_total = 2 * num_steps(whole)
    on_text = None
    if options.data is not None:
        on_text = _model_and_text(options, file)
        num_total += 2 * num_steps(whole) + num_passes(adapter)
    after_each = _steps(progress, num_total)
    updates = _beside(whole, after_each)
    outputs = losses = None
    if on_text is not None:
        model, examples = on_text
        attached = load_adapter(model, options.adapter)
        model.train(False)
        outputs = _beside(outputs_of_updates(model, documents(examples)), after_each)
        losses = _losses(model, attached, examples, after_each)
    return Analysis(
        adapter=options.adapter,
        against=options.against,
        method=file.config.method,
        base=file.base,
        num_parameters=adapter.num_parameters(),
        levels=levels,
        ranks=ranks,
        norm_shares=norm_shares(adapter),
        updates=updates,
        outputs=outputs,
        losses=losses,
        differences=differences,
    )


def _has_update(ranks: Mapping[Slot, UpdateRank]) -> bool:
    return any(rank.norm != 0 for rank in ranks.values())


def _differences(mine: Mapping[Slot, Factors], folder: str) -> Differences:
    other = read_whole_adapter(folder)
    with torch.no_grad():
        theirs = {slot: other.factors(slot) for slot in other.slots}
    return compare_adapters(mine, theirs)


def _beside(updates: Mapping[Slot, Factors], after_each: Callable[[], None]) -> Beside:
    return Beside(
        mine=similarity(updates, after_each=after_each),
        random=similarity(random_updates(updates), after_each=after_each),
    )


def _model_and_text(options: Options, file: AdapterFile) -> tuple[PreTrainedModel, Examples]:
    """The base model without the adapter, and the text.

    Raises:
        UserError: The adapter comes with a head or names no base; or as :func:`read_text`.
    """
    assert options.data is not None
    check_use(file, options.adapter, "analyze --data")
    base = options.base or file.base
    if not base:
        raise UserError(f"{options.adapter} does not name its base model; give it with --base.")
    tokenizer = load_tokenizer(base)
    examples = read_text(
        options.data, tokenizer, num_rows=options.num_rows, max_length=options.max_length, prompt=options.prompt
    )
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dtype: Dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    model = load_base(base, dtype=dtype).requires_grad_(False)
    torch.nn.Module.to(model, device)  # transformers wraps its own without types
    use_packed_attention(model)
    return model, examples


def _losses(
    model: PreTrainedModel, adapter: Adapter, examples: Examples, after_each: Callable[[], None]
) -> LevelLosses:
    """Losses on the examples with levels switched off."""

    def loss() -> float:
        value = loss_on(model, examples)
        after_each()
        return value

    return level_losses(adapter, loss)


def _steps(progress: Progress | None, total: int) -> Callable[[], None]:
    """A function that advances a new bar by a step of ``total``."""
    if progress is None:
        return lambda: None
    task = progress.add_task("analyzing", total=total)
    return lambda: progress.advance(task)
