"""What an export says about itself: the lines on the terminal, and its model card."""

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bishare.commands.export.compare_logits import Comparison
from bishare.models.export import vllm_rank


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that was compared with its adapter."""

    format: Literal["peft", "merged"]
    out: str
    base: str
    method: str
    num_weights: int
    num_parameters: int
    rank: int
    dtype: str
    comparison: Comparison
    change: float
    """The most by which the adapter moves a logit of the base."""
    adapter_bytes: int
    """Of the adapter's own file."""
    export_bytes: int


def facts(export: Export) -> dict[str, str]:
    """What the command prints, by name."""
    what = f"a PEFT LoRA of rank {export.rank}" if export.format == "peft" else f"a full model in {export.dtype}"
    method = f"{export.method}, {export.num_parameters:,} values on {export.num_weights} weights"
    return {
        "exported": f"{method}, as {what} to {export.out}",
        "compared": f"{export.comparison}; the adapter moves logits by up to {export.change:.2g}",
        "files": f"adapter {_size(export.adapter_bytes)}, export {_size(export.export_bytes)}",
        "serve": serve_command(export) + _vllm_note(export),
    }


def serve_command(export: Export) -> str:
    """The command that serves the export with vLLM."""
    out = shlex.quote(export.out)
    if export.format == "merged":
        return f"vllm serve {out}"
    base = shlex.quote(export.base) if _vllm_opens(export.base) else "BASE"
    name = shlex.quote(Path(export.out).resolve().name)
    return f"vllm serve {base} --enable-lora --max-lora-rank {vllm_rank(export.rank)} --lora-modules {name}={out}"


def _vllm_opens(base: str) -> bool:
    return not base.startswith("package:") and not base.endswith(".gguf")


def _vllm_note(export: Export) -> str:
    if export.format == "merged" or _vllm_opens(export.base):
        return ""
    return f"   (BASE: {export.base} in Hugging Face format)"


def card(export: Export) -> str:
    """The model card, which names the folder as it is seen from beside it."""
    name = Path(export.out).resolve().name
    export = replace(export, out=name)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", export.base) is not None and not Path(export.base).exists()
    about = [
        f"library_name: {'peft' if export.format == 'peft' else 'transformers'}",
        *([f"base_model: {export.base}"] if on_hub else []),
        "tags: [lora, bishare]",
    ]
    lines = [f"- {title}: {text}" for title, text in facts(export).items() if title != "serve"]
    return "\n".join(
        [
            *("---", *about, "---", "", f"# {name}", ""),
            f"An adapter of the base model `{export.base}`, exported by bishare.",
            *("", *lines, "", "```python", _python(export), "```", "", "```", serve_command(export), "```"),
            *(["", _vllm_note(export).strip()] if _vllm_note(export) else []),
            "",
        ]
    )


def _python(export: Export) -> str:
    name = export.out
    if export.format == "merged":
        return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
    base = export.base if _vllm_opens(export.base) else "BASE"
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")
model.generation_config = GenerationConfig.from_pretrained("{name}")  # it stops where answers were trained to end"""


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"
