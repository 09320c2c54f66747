"""Writes an adapter for other tools: as a standard PEFT LoRA folder, or inside a full Hugging Face model.

Every update is ``B A`` with the scale inside B, so the LoRA that says the same has ``r`` = rows of A and
``lora_alpha`` = r, whatever the method. Nothing is approximated.

Shapes: A [r, in], B [out, r].
"""

import json
from collections import Counter
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
"""Ranks that vLLM accepts as ``--max-lora-rank``."""


def vllm_rank(rank: int) -> int | None:
    """The smallest slot of vLLM that holds a LoRA of this rank; None if there is none."""
    return next((slot for slot in VLLM_RANKS if slot >= rank), None)


def export_rank(adapter: Adapter) -> int:
    """The highest rank of the exported LoRA."""
    return max(_ranks(adapter).values())


@torch.no_grad()
def write_peft(model: PreTrainedModel, folder: Path, *, base: str) -> None:
    """Write the adapter of ``model`` as a PEFT LoRA, in fp32.

    Args:
        model: A model that carries an adapter.
        folder: An existing folder.
        base: Name of the base model, for people and tools.
    """
    adapter = adapter_of(model)
    tensors: dict[str, Tensor] = {}
    for slot in adapter.slots:
        factors = adapter.factors(slot)
        for side, factor in (("A", factors.A), ("B", factors.B)):
            own = factor.to("cpu", torch.float32, copy=True)  # a file can't say that weights share a tensor
            tensors[f"base_model.model.{slot.name}.lora_{side}.weight"] = own.contiguous()
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(json.dumps(_peft_config(model, adapter, base), indent=2) + "\n", encoding="utf-8")


def _peft_config(model: PreTrainedModel, adapter: Adapter, base: str) -> dict[str, Any]:
    ranks = _ranks(adapter)
    rank = max(ranks.values())  # vLLM sizes its slots by this one
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
    """Rank of every adapted weight, by its module's name."""
    return {slot.name: adapter.factors(slot).rank for slot in adapter.slots}


def _target_modules(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """The last parts of the modules' names where they mean these modules and no others, else the whole names."""
    ends = Counter(name.rpartition(".")[2] for name in names)
    meant = [
        name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends and not name.startswith(f"{NAME}.")
    ]
    return sorted(ends) if len(meant) == len(names) else list(names)


def write_merged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype
) -> None:
    """Add the updates to the weights in fp32 and write the whole model with its tokenizer.

    Args:
        model: A model that carries an adapter; afterwards it is a plain model with other weights.
        tokenizer: The base model's.
        folder: An existing folder.
        dtype: Type of the written weights, not wider than the model's.

    Raises:
        UserError: An adapted weight is tied to another one, or the files can't be written.
    """
    merge_and_remove(model)
    nn.Module.to(model, dtype)  # transformers hides its types
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # its form of a full disk
        raise UserError(f"the merged model can't be written: {error}.") from error
