"""The description of an export: lines for the terminal, and the model card."""

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bishare.commands.export.compare_logits import Comparison
from bishare.models.export import vllm_rank


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export after the comparison with the adapter."""

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
    """The largest change of a base's logit by the adapter."""
    adapter_bytes: int
    """Size of the adapter's own file."""
    export_bytes: int
    """Size of all files of the export."""


def facts(export: Export) -> dict[str, str]:
    """Lines for the terminal, by title."""
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
    """A note on the base in a command with BASE; empty for all further commands."""
    if export.format == "merged" or _vllm_opens(export.base):
        return ""
    return f"   (BASE: {export.base} in Hugging Face format)"


def card(export: Export) -> str:
    """The model card; the export's folder is named without the path, so that the card stays true elsewhere."""
    name = Path(export.out).resolve().name
    export = replace(export, out=name)
    lines = ["---", *_metadata(export), "---", "", f"# {name}", ""]
    lines += [f"An adapter of the base model `{export.base}`, exported by bishare.", ""]
    lines += [f"- {title}: {text}" for title, text in facts(export).items() if title != "serve"]
    lines += ["", "```python", _python(export), "```", "", "```", serve_command(export), "```"]
    if note := _vllm_note(export):
        lines += ["", note.strip()]
    return "\n".join([*lines, ""])


def _metadata(export: Export) -> list[str]:
    """Lines of YAML for the hub."""
    lines = [f"library_name: {'peft' if export.format == 'peft' else 'transformers'}"]
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", export.base) is not None
    if is_hub_name and not Path(export.base).exists():
        lines.append(f"base_model: {export.base}")
    return [*lines, "tags: [lora, bishare]"]


def _python(export: Export) -> str:
    """Python code that loads the export."""
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
