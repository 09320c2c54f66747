"""Writes docs/compatibility.md from the rules that the code enforces; run by `make docs`."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.uses import FOR_LANGUAGE_MODELS
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.models.dtypes import Dtype
from bishare.models.export import vllm_rank
from bishare.models.packed_attention import can_pack, use_packed_attention
from bishare.models.targets import find_slots
from bishare.training.compatibility import DDP, DEEPSPEED, LIGHTNING_DEEPSPEED, ONE_DEVICE, Combination, rule_against

PAGE = Path(__file__).with_suffix(".md")

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
STRATEGIES = {
    "one device": Combination(strategy=ONE_DEVICE),
    "`ddp`": Combination(strategy=DDP),
    "`BiShareDeepSpeed`, stage 1": Combination(strategy=DEEPSPEED, stage=1),
    "`BiShareDeepSpeed`, stage 2": Combination(strategy=DEEPSPEED, stage=2),
    "`BiShareDeepSpeed`, stage 3": Combination(strategy=DEEPSPEED, stage=3),
    "Lightning's `deepspeed`": Combination(strategy=LIGHTNING_DEEPSPEED, stage=2),
    "`fsdp`": Combination(strategy="FSDPStrategy"),
    "`ModelParallelStrategy`": Combination(strategy="ModelParallelStrategy"),
}
OPTIONS = {
    "a language model": {},
    "a classification head (`ClassificationData`)": {"classification": True},
    "`model.compile: true`": {"compile": True},
    "`gradient_clip_algorithm: norm`": {"clipping": "norm"},
    "`gradient_clip_algorithm: value`": {"clipping": "value"},
}
METHODS: dict[str, AdapterConfig] = {
    "LoRA": LoRAConfig(),
    "Bi-Share, slice": BiShareConfig(transform="slice"),
    "Bi-Share, gate": BiShareConfig(transform="gate"),
    "Bi-Share, kronecker": BiShareConfig(transform="kronecker"),
    "Bi-Share, slice, `merging: true`": BiShareConfig(transform="slice", merging=True),
    "Bi-Share, gate, `merging: true`": BiShareConfig(transform="gate", merging=True),
    "Bi-Share, kronecker, `merging: true`": BiShareConfig(transform="kronecker", merging=True),
    "ASLoRA": ASLoRAConfig(),
    "VeRA": VeRAConfig(),
    "VB-LoRA": VBLoRAConfig(),
}
WORDS = {
    "strategy": "...",
    "precision": "...",
    "base_dtype": "...",
    "wanted": "a precision of the table",
    "casts": "another type",
}
"""What stands in a message for the settings of a run."""
USES = ("validate, test, predict", "analyze", *FOR_LANGUAGE_MODELS)
PACKED_OR_PADDED = ("llama", "qwen2", "qwen3", "gemma", "gpt2", "opt", "mixtral", "mistral", "gemma2", "falcon")
"""Model types of transformers that the page asks about, each with its default configuration."""

INTRODUCTION = """\
# Compatibility

`make docs` writes the page from the rules enforced by the code (`bishare/training/compatibility.py`, \
`bishare/adapters/uses.py` and the methods' own properties); a test fails when page and rules differ.
A refused combination stops before the base model is read. The message names the setting and a setting to use instead.
"yes" means: no rule refuses the combination. The [README](../README.md#what-has-been-proved-where) lists the \
hardware on which combinations were run.
"""

ALWAYS = """\
## Without exception

- No rule depends on the method: every method trains under every strategy accepted above. `tests/parity` \
compares losses, gradient norms and merges under DDP and ZeRO-1, 2 and 3 with those of one process.
- `model.gradient_checkpointing: true` goes with every method, strategy and precision. Checkpointing is always \
non-re-entrant, because shared parameters need the non-re-entrant form.
- `model.compile: true` compiles the normalisation layers alone. A C++ compiler is needed on a CPU.
- `dropout` goes with every method. Merged weights and served adapters have no dropout.
- Merging into weights, by `bishare.merge` or `export --format merged`, is refused where an adapted weight is tied to \
a weight outside the adapter: both would change.
- Adapted weights are of class `nn.Linear` or `Conv1D`. Bases loaded with quantisation or `device_map` are refused.
"""

PACKS = """\
## Packs

Examples stand end to end in a row where the model's attention keeps examples apart: a decoder with exchangeable, full \
causal attention in every layer. All further models, and all classifiers, get padded rows of like lengths. Some model \
types of transformers, each with the default configuration:
"""


class Notes:
    """Messages with their numbers, in the order in which tables name them."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self._texts:
            self._texts.append(text)
        return self._texts.index(text) + 1

    def __str__(self) -> str:
        return "\n".join(f"{number}. {text}" for number, text in enumerate(self._texts, start=1))


def page() -> str:
    """The whole page."""
    logging.set_verbosity_error()
    notes = Notes()
    sections = [
        INTRODUCTION,
        "## Strategy, precision and type of the base\n\n"
        "Cells list the types of the frozen weights (`model.base_dtype`) to combine with strategy and precision. The "
        "adapter is fp32 in every cell.\n\n" + _precisions(notes),
        "## Strategy and options\n\n" + _options(notes),
        f"The messages, by number:\n\n{notes}\n",
        ALWAYS,
        "## Methods\n\nThe rank is the exported LoRA's on Llama 1-7B with the method's default options; vLLM "
        "keeps a LoRA in the next larger of its slots.\n\n" + _methods(),
        "## A trained adapter\n\n" + _uses(),
        PACKS + "\n" + _packs(),
        "Models with convolutions or a state across tokens beside attention, LFM2 for example, are not recognised: "
        "set `data.packing: false` there.\n",
    ]
    return "\n".join(sections)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _precisions(notes: Notes) -> str:
    def cell(strategy: Combination, precision: str) -> str:
        accepted: list[str] = []
        refused: list[int] = []
        for dtype in get_args(Dtype):
            rule = rule_against(replace(strategy, precision=precision, base_dtype=dtype))
            if rule is None:
                accepted.append(dtype)
            else:
                refused.append(notes.number(_readable(rule.message)))
        if not refused:
            return "all"
        numbers = ", ".join(map(str, sorted(set(refused))))
        return f"{', '.join(accepted)} (else {numbers})" if accepted else f"no ({numbers})"

    rows = [[name, *(cell(run, precision) for precision in PRECISIONS)] for name, run in STRATEGIES.items()]
    return table(["strategy", *(f"`{precision}`" for precision in PRECISIONS)], rows)


def _options(notes: Notes) -> str:
    def cell(strategy: Combination, options: dict[str, object]) -> str:
        run = replace(strategy, **options)
        rule = rule_against(replace(run, precision=run.wanted))
        return "yes" if rule is None else f"no ({notes.number(_readable(rule.message))})"

    rows = [[name, *(cell(run, options) for options in OPTIONS.values())] for name, run in STRATEGIES.items()]
    return table(["strategy", *OPTIONS], rows)


def _readable(message: str) -> str:
    """The message of a rule with words in the places of a run's settings."""
    return message.format(**WORDS)


def _methods() -> str:
    slots = _llama_7b()
    rows = []
    for name, config in METHODS.items():
        with torch.device("meta"):
            adapter = config.build(slots)
        rank = max(adapter.factors(slot).rank for slot in slots)
        groups = [group.partition(".")[0] for group in adapter.mergeable_groups()]
        levels = ", ".join(dict.fromkeys(groups)) or "nothing"
        rows.append(
            [
                name,
                f"yes: {levels}" if config.mergeable else "no",
                "yes" if adapter.starts_as_noop else "no",
                str(rank),
                str(vllm_rank(rank) or "none"),
            ]
        )
    return table(["method", "merges (`AdaptiveMerging`)", "starts as the base model", "rank", "slot in vLLM"], rows)


def _llama_7b() -> tuple[Slot, ...]:
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 2}
    return find_slots(_on_meta("llama", **shape), LoRAConfig())


def _uses() -> str:
    def cell(use: str) -> str:
        reason = FOR_LANGUAGE_MODELS.get(use)  # the other uses have a place for a head
        return "yes" if reason is None else f"no: {reason}"

    rows = [[f"`{use}`", "yes", cell(use)] for use in USES]
    return table(["use", "of a language model", "with a classification head"], rows)


def _packs() -> str:
    rows = []
    for kind in PACKED_OR_PADDED:
        model = _on_meta(kind)
        use_packed_attention(model)
        rows.append([f"`{kind}`", "packed" if can_pack(model) else "padded"])
    return table(["model type", "examples are"], rows)


def _on_meta(kind: str, **options: object) -> torch.nn.Module:
    config = AutoConfig.for_model(kind, **options)
    for name in ("num_hidden_layers", "n_layer"):  # two layers say as much as all
        if hasattr(config, name):
            setattr(config, name, 2)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
