"""The architecture of a base without weights and without the network: shapes on the meta device.

The source is the config.json of a local model or of the hub's cache, or ``base/OWNER--NAME.json`` beside the
configuration or in the project's own ``configs/base``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import try_to_load_from_cache

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.errors import UserError
from bishare.models.targets import find_slots
from bishare.shipped import shipped_folder


def find_architecture(
    base: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    files: Sequence[Path] = (),
    given: str | None = None,
) -> transformers.PretrainedConfig:
    """The base's architecture, from files of the local machine.

    Args:
        base: Hub name, local folder, ``.gguf`` file, or ``package:NAME``.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run Python code that comes with the base model.
        files: Configuration files; ``base/OWNER--NAME.json`` is looked for beside each file and in the project.
        given: A config.json to use instead.

    Raises:
        UserError: The local machine has no file of the architecture.
    """
    if given is not None:
        return _read_architecture(Path(given), trust_remote_code=trust_remote_code)
    if base.startswith("package:") or base.endswith(".gguf") or Path(base).expanduser().exists():
        from bishare.models.loading import load_base_config

        return load_base_config(base, revision=revision, trust_remote_code=trust_remote_code)
    name = base.replace("/", "--") + ".json"
    for folder in (*(file.parent for file in files), shipped_folder("configs")):
        if (folder / "base" / name).is_file():
            return _read_architecture(folder / "base" / name, trust_remote_code=trust_remote_code)
    # A hub name has at most a single slash.
    cached = try_to_load_from_cache(base, "config.json", revision=revision) if base.count("/") < 2 else None
    if isinstance(cached, str):
        return _read_architecture(Path(cached), trust_remote_code=trust_remote_code)
    raise UserError(
        f"the architecture of {base} is not on this machine, and plan downloads nothing; give its config.json with "
        f"--architecture, put it beside the configuration as base/{name}, or run `hf download {base} config.json`."
    )


def _read_architecture(file: Path, *, trust_remote_code: bool) -> transformers.PretrainedConfig:
    try:
        config = transformers.AutoConfig.from_pretrained(file, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is no config.json of a model that transformers knows: {reason}") from error
    assert isinstance(config, transformers.PretrainedConfig)
    return config


def build_on_meta(
    config: transformers.PretrainedConfig, *, num_classes: int | None = None, trust_remote_code: bool = False
) -> transformers.PreTrainedModel:
    """The model of an architecture, with shapes and without values.

    Args:
        config: The architecture.
        num_classes: Build a classifier of sequences instead of a causal language model.
        trust_remote_code: Run Python code that comes with the base model.

    Raises:
        UserError: The architecture has no model for the task.
    """
    auto: Any = transformers.AutoModelForCausalLM
    if num_classes is not None:
        auto, config.num_labels = transformers.AutoModelForSequenceClassification, num_classes
    try:
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise UserError(f"{type(config).__name__}: {str(error).splitlines()[0]}") from error
    return cast(transformers.PreTrainedModel, model)


def build_adapter(model: torch.nn.Module, config: AdapterConfig) -> Adapter:
    """The adapter for ``model``, on the meta device."""
    with torch.device("meta"):
        return config.build(find_slots(model, config))
