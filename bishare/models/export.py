"""Writes an adapter for different tools: as a standard PEFT LoRA folder, or merged into a full Hugging Face model.

Every update is ``B A`` with the scale inside B. For every method the equal LoRA has ``r`` = rows of A and
``lora_alpha`` = r. Nothing is approximated.

Shapes: A [r, in], B [out, r].
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from bishare.adapters.base import Adapter
from bishare.adapters.checkpoint import CONFIG, WEIGHTS
from bishare.errors import UserError
from bishare.models.attach import NAME, adapter_of, merge_and_remove

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks accepted by vLLM as ``--max-lora-rank``."""


def vllm_rank(rank: int) -> int | None:
    """The smallest slot of vLLM for a LoRA of this rank; None if the rank is too high."""
    return next((slot for slot in VLLM_RANKS if slot >= rank), None)


def export_rank(adapter: Adapter) -> int:
    """The highest rank of the exported LoRA."""
    return max(_ranks(adapter).values())


@torch.no_grad()
def write_peft(model: PreTrainedModel, folder: Path, *, base: str) -> None:
    """Write the adapter of ``model`` as a PEFT LoRA, in fp32.

    Args:
        model: A model with an adapter.
        folder: An existing folder.
        base: Name of the base model, for people and tools.
    """
    adapter = adapter_of(model)
    tensors: dict[str, Tensor] = {}
    for slot in adapter.slots:
        factors = adapter.factors(slot)
        for side, factor in (("A", factors.A), ("B", factors.B)):
            own = factor.to("cpu", torch.float32, copy=True)  # the file format has no shared tensors
            tensors[f"base_model.model.{slot.name}.lora_{side}.weight"] = own.contiguous()
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(json.dumps(_peft_config(model, adapter, base), indent=2) + "\n", encoding="utf-8")


def _peft_config(model: PreTrainedModel, adapter: Adapter, base: str) -> dict[str, Any]:
    ranks = _ranks(adapter)
    rank = max(ranks.values())  # vLLM sizes its slots by r
    # PEFT reads the keys as regular expressions for the end of a module's name.
    pattern = {name.replace(".", r"\."): r for name, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.can_generate() else None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(model.get_submodule(name), Conv1D) for name in ranks),
        "target_modules": _target_modules(model, ranks),
    }


def _ranks(adapter: Adapter) -> dict[str, int]:
    """Rank of every adapted weight, by module name."""
    return {slot.name: adapter.factors(slot).rank for slot in adapter.slots}


def _target_modules(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """The last parts of the modules' names if no further module fits, else the whole names."""
    ends = {name.rpartition(".")[2] for name in names}
    num_fitting = 0
    for name, _ in model.named_modules():
        # The adapter's own modules are no part of the exported model.
        if name.rpartition(".")[2] in ends and not name.startswith(f"{NAME}."):
            num_fitting += 1
    return sorted(ends) if num_fitting == len(names) else list(names)


def write_merged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype
) -> None:
    """Add the updates to the weights in fp32 and write the whole model with its tokenizer.

    Args:
        model: A model with an adapter; afterwards a plain model with merged weights.
        tokenizer: The base model's.
        folder: An existing folder.
        dtype: Type of the written weights, not wider than the model's.

    Raises:
        UserError: An adapted weight is tied to a second weight, or the files can't be written.
    """
    merge_and_remove(model)
    nn.Module.to(model, dtype)  # transformers hides its types
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # e.g. a full disk
        raise UserError(f"the merged model can't be written: {error}.") from error
