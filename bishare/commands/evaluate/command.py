"""``evaluate``: scores an adapter on commonsense questions, MMLU or GSM8K by lm-evaluation-harness."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bishare.commands.config.options import parse_options
from bishare.commands.evaluate.catalog import SUITES, check_local, find_suite
from bishare.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = "The quick brown fox jumps over the lazy dog. Question: what is 3 + 4?"

DESCRIPTION = "Score an adapter on questions by lm-evaluation-harness."


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to evaluate, and on what."""

    adapter: str
    """Folder of the adapter."""
    suite: str
    """``commonsense`` (eight tasks), ``mmlu`` or ``gsm8k``."""
    shots: int | None = None
    """Examples before every question; by default 0, for gsm8k 5."""
    limit: int | None = None
    """Questions of each task (for mmlu: of each subject), the first ones; all by default."""
    data: str | None = None
    """Folder of local rows instead of the hub's data; nothing is then downloaded, a base from the hub must be in the
    cache, and the scores are those of the local sample."""
    base: str | None = None
    """Where the base model is, if not where the adapter's file says."""
    with_base: bool = False
    """Score the base model without the adapter too, which takes as long again."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; by default float32 on a CPU and bfloat16 elsewhere."""
    batch_size: int = 16
    """Requests in one pass of the model."""
    out: str | None = None
    """Folder for the results; by default ``evaluation`` beside the adapter's folder."""

    def __post_init__(self) -> None:
        for name in ("shots", "limit", "batch_size"):
            least, value = int(name != "shots"), getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}.")


def run(command: str, arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: For every mistake in the options, the adapter or the data.
    """
    options = parse_options(Options, command, arguments, description=DESCRIPTION)
    find_suite(options.suite)
    if options.data is not None:
        # Read when huggingface_hub and datasets are first imported. Without them each look at the hub waits for it.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    evaluate(options)


def evaluate(options: Options) -> Path:
    """Score an adapter; print the table and write JSON, a page and every question's result.

    Returns:
        The page.

    Raises:
        UserError: The suite is unknown or lacks its files, or the adapter can't be read, belongs to another base or
            changes no logit.
    """
    suite = find_suite(options.suite)
    shots = suite.shots if options.shots is None else options.shots
    if options.data is not None:
        check_local(options.suite, suite, options.data, shots)
    if find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed; try `pip install 'bishare[eval]'`.")

    # Heavy, and they read the environment that run() sets.
    import torch
    from transformers import __version__ as transformers_version

    from bishare.adapters.checkpoint import read_adapter
    from bishare.adapters.uses import check_use
    from bishare.commands.evaluate.harness import run_suite
    from bishare.commands.evaluate.hashes import adapter_hash, base_hash
    from bishare.commands.evaluate.published import published_for
    from bishare.commands.evaluate.report import (
        NOT_COMPARABLE,
        Report,
        count_questions,
        read_scores,
        read_subtasks,
        save,
        show,
    )
    from bishare.commands.quiet import silence_known_noise
    from bishare.models.attach import load_adapter
    from bishare.models.loading import load_base, load_tokenizer
    from bishare.models.sources import find_base
    from bishare.version import __version__

    silence_known_noise()
    file = read_adapter(options.adapter)
    check_use(file, options.adapter, "evaluate")
    base = options.base or file.base
    if not base:
        raise UserError(f"{options.adapter} does not say what its base is; name it with --base.")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    model, tokenizer = load_base(base, dtype=dtype).requires_grad_(False), load_tokenizer(base)
    torch.nn.Module.to(model, device)  # transformers wraps its own without types

    def score() -> dict[str, Any]:
        return run_suite(
            model,
            tokenizer,
            suite,
            data=options.data,
            shots=shots,
            limit=options.limit,
            batch_size=options.batch_size,
        )

    plain = _logits(model, tokenizer)
    base_results = score() if options.with_base else None
    load_adapter(model, options.adapter)
    model.train(False)
    if torch.equal(_logits(model, tokenizer), plain):
        raise UserError(f"{options.adapter} changes no logit of {base} in {dtype}: it was not trained.")
    start = time.perf_counter()
    results = score()
    local = options.data is not None
    report = Report(
        suite=options.suite,
        shots=shots,
        limit=options.limit,
        data=NOT_COMPARABLE if local else "hub",
        adapter=options.adapter,
        method=file.config.method,
        adapter_sha256=adapter_hash(options.adapter),
        base=base,
        base_sha256=base_hash(find_base(base)),
        versions={
            "bishare": __version__,
            "lm-evaluation-harness": version("lm_eval"),
            "transformers": transformers_version,
            "torch": torch.__version__,
        },
        dtype=dtype,
        device=device.type,
        batch_size=options.batch_size,
        seconds=round(time.perf_counter() - start, 1),
        num_questions=count_questions(results, suite, local=local),
        scores=read_scores(results, suite, local=local),
        base_scores=read_scores(base_results, suite, local=local) if base_results else None,
        published=published_for(file.config) if suite is SUITES["commonsense"] and not local else [],
        subtasks=read_subtasks(results, suite),
    )
    samples = _samples(results, "adapter") + (_samples(base_results, "base") if base_results else [])
    page = save(report, samples, Path(options.out or Path(options.adapter).resolve().parent / "evaluation"))
    show(report)
    print(f"written: {page}, and beside it .json and .samples.jsonl")
    return page


def _samples(results: dict[str, Any], model: str) -> list[dict[str, Any]]:
    """Every question's result: the log-likelihood of each choice, or the answer's text, and the metrics."""
    return [
        {
            "model": model,
            "task": task.rpartition("::")[2].removeprefix("local_"),
            "question": sample["doc_id"],
            "target": sample["target"],
            "filter": sample["filter"],
            # A log-likelihood comes with whether greedy decoding gives the choice; a text comes alone.
            "choices": [choice[0] if isinstance(choice, tuple) else choice for choice in sample["filtered_resps"]],
            **{metric: sample[metric] for metric in sample["metrics"]},
        }
        for task, samples in results["samples"].items()
        for sample in samples
    ]


def _logits(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
    import torch

    with torch.no_grad():
        tokens = tokenizer(PROBE, return_tensors="pt").to(model.device)
        logits: Tensor = model(input_ids=tokens["input_ids"], use_cache=False).logits
    return logits
