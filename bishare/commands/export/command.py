"""``export``: writes an adapter as a standard PEFT LoRA or as a full model, after a comparison with the adapter."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bishare.adapters.checkpoint import WEIGHTS, read_adapter
from bishare.adapters.uses import check_use
from bishare.commands.config.options import parse_options
from bishare.commands.export.compare_logits import PROMPTS, Comparison, compare, logits_of
from bishare.commands.export.model_card import Export, card, facts
from bishare.commands.quiet import silence_known_noise
from bishare.data.encoding import stop_tokens
from bishare.errors import UserError
from bishare.files import atomic_folder
from bishare.models.attach import load_adapter, remove
from bishare.models.dtypes import Dtype
from bishare.models.export import VLLM_RANKS, export_rank, vllm_rank, write_merged, write_peft
from bishare.models.loading import load_base, load_base_config, load_tokenizer

# fp32 rounding causes 1e-6 in a sound model, and up to 1e-4 after a training that diverged and amplifies rounding.
# Rounding to 16 bits moves every weight: then the comparison only tells the export from a wrong model.
TOLERANCE: dict[str, float] = {"float32": 5e-4, "float16": 1e-2, "bfloat16": 1e-1}
"""The largest difference from the adapter that counts as rounding, as a fraction of the largest |logit|."""

DESCRIPTION = "Write an adapter as a PEFT LoRA or as a full model, after a comparison with the adapter."


@dataclass(kw_only=True)
class ExportSettings:
    """The options of the command."""

    adapter: str
    """Folder of the adapter."""
    format: Literal["peft", "merged"]
    """``peft``: a standard LoRA folder; ``merged``: a full Hugging Face model with the updates in its weights."""
    out: str
    """Folder to write: a new or empty folder."""
    base: str = ""
    """Path or name of the base model, if the adapter's file names an outdated place."""
    dtype: Dtype | None = None
    """Type of a merged model's weights; if left out, the base's (of a GGUF file: float32)."""
    revision: str | None = None
    """Branch, tag or commit of a base on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base."""


def run(command: str, arguments: Sequence[str]) -> None:
    """Export an adapter.

    Raises:
        UserError: For every mistake in the options, the adapter or the base; then nothing is written.
    """
    silence_known_noise()
    settings = parse_options(ExportSettings, command, arguments, description=DESCRIPTION)
    out = Path(settings.out)
    _check_free(out)
    export = export_adapter(settings, out)
    for name, text in facts(export).items():
        print(f"{name:<10}{text}")  # without wrapping, since the command is copied from here


def _check_free(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"out {out} is not empty, and nothing is overwritten; name another folder.")
    if out.exists() and not out.is_dir():
        raise UserError(f"out {out} is a file; name a folder.")


def export_adapter(settings: ExportSettings, out: Path) -> Export:
    """Write the export, open it with stock libraries and compare logits; ``out`` appears after success.

    Raises:
        UserError: As :func:`run`, or the export's logits differ from the adapter's.
    """
    file = read_adapter(settings.adapter)
    base = settings.base or file.base
    if not base:
        raise UserError(f"{settings.adapter} does not name its base model; give it with --base.")
    check_use(file, settings.adapter, "export")
    dtype, loaded = _types(settings, base)
    model, tokenizer = _load(settings, base, loaded)
    plain = logits_of(model, tokenizer)
    adapter = load_adapter(model, settings.adapter)
    rank, num_parameters = export_rank(adapter), adapter.num_parameters()
    _check_rank(settings, rank)
    native = logits_of(model, tokenizer)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = stop_tokens(model, tokenizer)
    change = compare(plain, native).difference
    if change == 0.0:
        raise UserError(
            f"{settings.adapter} changes no logit of {base}: the adapter is untrained; train it first (nothing was "
            "exported)."
        )
    with atomic_folder(out) as folder:
        if settings.format == "peft":
            write_peft(model, folder, base=base)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            remove(model)
            comparison = compare(native, _peft_logits(model, tokenizer, folder))
        else:
            write_merged(model, tokenizer, folder, dtype=getattr(torch, dtype))
            del model, adapter  # memory for the written model
            comparison = compare(native, _merged_logits(tokenizer, folder, dtype, settings.trust_remote_code))
        _check(comparison, TOLERANCE[dtype])
        export = Export(
            format=settings.format,
            out=settings.out,
            base=base,
            method=file.config.method,
            num_weights=len(file.slots),
            num_parameters=num_parameters,
            rank=rank,
            dtype=dtype,
            comparison=comparison,
            change=change,
            adapter_bytes=Path(settings.adapter, WEIGHTS).stat().st_size,
            export_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        )
        (folder / "README.md").write_text(card(export), encoding="utf-8")
    return export


def _load(settings: ExportSettings, base: str, dtype: Dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = load_base(base, dtype=dtype, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    tokenizer = load_tokenizer(base, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    return model, tokenizer


def _check_rank(settings: ExportSettings, rank: int) -> None:
    # A full model has the update in its weights, whatever the rank.
    if settings.format == "peft" and vllm_rank(rank) is None:
        raise UserError(
            f"{settings.adapter} makes a LoRA of rank {rank}, and vLLM serves at most {VLLM_RANKS[-1]}; "
            "use --format merged."
        )


def _types(settings: ExportSettings, base: str) -> tuple[Dtype, Dtype]:
    """The type of the written weights, and the type in which the base is loaded."""
    if settings.format == "peft":
        if settings.dtype is not None:
            raise UserError("dtype is for --format merged; a PEFT LoRA is written in float32.")
        return "float32", "float32"
    config = load_base_config(base, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    own = str(config.dtype).removeprefix("torch.")
    dtype: Dtype = "float32"
    if settings.dtype is not None:
        dtype = settings.dtype
    elif own in get_args(Dtype):
        dtype = cast(Dtype, own)
    # Weights of a different type are loaded in fp32, so that the sum is rounded once.
    return dtype, dtype if dtype == own else "float32"


def _peft_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[Tensor]:
    """Logits of stock PEFT with the written folder.

    Raises:
        UserError: PEFT finds no place for a part of the adapter.
    """
    from peft import PeftModel  # here, since the import takes seconds

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reopened = PeftModel.from_pretrained(model, str(folder))
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise UserError(f"PEFT does not find the whole adapter: {warning.message}")
    return logits_of(reopened, tokenizer)


def _merged_logits(
    tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: Dtype, trust_remote_code: bool
) -> list[Tensor]:
    """Logits of the written model, opened with the written tokenizer."""
    options = {"trust_remote_code": trust_remote_code}
    reopened = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
    its_own = AutoTokenizer.from_pretrained(folder, **options)
    for prompt in PROMPTS:
        assert its_own(prompt)["input_ids"] == tokenizer(prompt)["input_ids"], prompt
    return logits_of(reopened, its_own)


def _check(comparison: Comparison, tolerance: float) -> None:
    if not comparison.relative <= tolerance:  # written so that not a number fails
        raise UserError(f"the export is not the adapter, and was not kept. {comparison}; at most {tolerance:.0e}.")
