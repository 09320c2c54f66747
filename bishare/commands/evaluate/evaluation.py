"""Runs a suite on an adapter's base model, with the adapter and on request without."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bishare.adapters.base import AdapterConfig
from bishare.adapters.checkpoint import read_adapter
from bishare.commands.evaluate.catalog import Suite
from bishare.commands.evaluate.harness import run_suite
from bishare.commands.evaluate.options import Options
from bishare.commands.evaluate.scores import read_samples
from bishare.errors import UserError
from bishare.models.attach import load_adapter
from bishare.models.dtypes import Dtype
from bishare.models.loading import load_base, load_tokenizer

PROBE = "The quick brown fox jumps over the lazy dog. Question: what is 3 + 4?"
"""A text on which an adapter must change some logit."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of the harness, and the circumstances."""

    config: AdapterConfig
    base: str
    dtype: Dtype
    device: str
    seconds: float
    """Time of the suite with the adapter."""
    results: Mapping[str, Any]
    base_results: Mapping[str, Any] | None
    """Results without the adapter."""

    def samples(self) -> list[dict[str, Any]]:
        """Every question's result, with the adapter and then without."""
        samples = read_samples(self.results, "adapter")
        if self.base_results is not None:
            samples += read_samples(self.base_results, "base")
        return samples


def evaluate_adapter(options: Options, suite: Suite, shots: int) -> Evaluation:
    """Load base and adapter and run the suite.

    Raises:
        UserError: The adapter can't be read, names no base, belongs to another base or changes no logit.
    """
    file = read_adapter(options.adapter)
    base = options.base or file.base
    if not base:
        raise UserError(f"{options.adapter} does not name its base model; give it with --base.")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dtype: Dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
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

    before = _probe_logits(model, tokenizer)
    base_results = score() if options.with_base else None
    load_adapter(model, options.adapter)
    model.train(False)
    if torch.equal(_probe_logits(model, tokenizer), before):
        raise UserError(
            f"{options.adapter} changes no logit of {base} in {dtype}: the adapter is untrained; train it first."
        )
    start = time.perf_counter()
    results = score()
    return Evaluation(
        config=file.config,
        base=base,
        dtype=dtype,
        device=device.type,
        seconds=time.perf_counter() - start,
        results=results,
        base_results=base_results,
    )


@torch.no_grad()
def _probe_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    tokens = tokenizer(PROBE, return_tensors="pt").to(model.device)
    logits: Tensor = model(input_ids=tokens["input_ids"], use_cache=False).logits
    return logits
