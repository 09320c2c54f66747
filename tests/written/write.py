"""Writes the files of this folder: adapters of every method and training checkpoints, with what they answer.

Every release of the adapter format gets such files once, from its own tree:

    PYTHONPATH=TREE python tests/written/write.py OUT

The tests then load them with the present tree. The values of base and adapters come from a sine, so that no random
generator decides them.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import lightning
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import bishare
from bishare.cli import main
from bishare.data import InstructionData

CONFIGS = {
    "lora": bishare.LoRAConfig(r=2),
    "slice": bishare.BiShareConfig(transform="slice", r_local=1, r_intra=1, r_inter=2),
    "gate": bishare.BiShareConfig(transform="gate", r_local=1, r_intra=1, r_inter=2, size=4),
    "kronecker": bishare.BiShareConfig(transform="kronecker", r_local=1, r_intra=1, r_inter=2, size=8),
    "merging": bishare.BiShareConfig(transform="kronecker", r_local=1, r_intra=1, r_inter=2, size=8, merging=True),
    "aslora": bishare.ASLoRAConfig(r=2),
    "vera": bishare.VeRAConfig(r=4),
    "vblora": bishare.VBLoRAConfig(r=2, num_vectors=8, vector_length=4),
}
TOKENS = (torch.arange(12) * 5 % 61 + 2)[None]  # [1, 12]
STEPS = 4
"""Optimizer steps of the whole run; the checkpoints are of its first half."""


def sine_(named: Iterable[tuple[str, nn.Parameter]], scale: float) -> None:
    """Fill parameters with values that differ from entry to entry; norms stay near one."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(named):
            angles = torch.arange(parameter.numel(), dtype=torch.float64) * (1.7 + 0.1 * number) + number
            values = scale * torch.sin(angles) + float("norm" in name)
            parameter.copy_(values.reshape(parameter.shape).float())


def tiny_llama() -> LlamaForCausalLM:
    """A Llama of three layers with a vocabulary of bytes."""
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=0,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    sine_(model.named_parameters(), 0.3)
    return model


def write_base(folder: Path) -> None:
    """The Llama with its tokenizer, as a folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate(["</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    tiny_llama().save_pretrained(folder)


def write_run(folder: Path) -> Path:
    """Rows, base and a configuration of a run of ``STEPS`` steps that merges at step 2; returns the configuration.

    Paths are relative to the folder, in which the run is started.
    """
    write_base(folder / "base")
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(1, 11)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    merging = {"class_path": "callbacks.AdaptiveMerging", "init_args": {"start": 1, "interval": 1, "num_merges": 1}}
    checkpoints = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": STEPS // 2, "save_top_k": -1, "save_on_train_epoch_end": False},
    }
    content = {
        "model": {
            "base": "base",
            "base_dtype": "float32",
            "learning_rate": 0.01,
            "warmup_steps": 0,
            "adapter": {
                "class_path": "bishare.BiShareConfig",
                "init_args": {"r_local": 1, "r_intra": 1, "r_inter": 2, "size": 8, "merging": True},
            },
        },
        "data": {
            "class_path": "bishare.data.InstructionData",
            "init_args": {"path": "rows.jsonl", "batch_size": 2, "num_validation": 2},
        },
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": "run",
            "max_steps": STEPS,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "callbacks.AdapterCheckpoint"}, merging, checkpoints],
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def write_adapters(out: Path) -> None:
    """An adapter folder of each method, two layers merged where the method merges, and the base's answers with each."""
    answers = {}
    for name, config in CONFIGS.items():
        model = tiny_llama()
        adapter = bishare.attach(model, config)
        trained = [(name, p) for name, p in adapter.named_parameters() if p.requires_grad]
        sine_(trained, 0.2)
        for group in adapter.mergeable_groups().values():
            group.tie(0, 2)
        bishare.save_adapter(adapter, out / name, base="tiny")
        answers[name] = logits(model)
    (out / "logits.json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def logits(model: nn.Module) -> list[float]:
    """The first logits behind the last token."""
    return [round(value, 5) for value in model(TOKENS).logits[0, -1, :8].tolist()]


def write_checkpoints(out: Path, scratch: Path) -> None:
    """Checkpoints of half a run from the command line and from Python, and the adapter at the command's end."""
    path = write_run(scratch)
    os.chdir(scratch)
    if main(["fit", "--config", str(path)]):
        raise SystemExit("fit failed")
    half = next((scratch / "run" / "checkpoints").glob(f"*step={STEPS // 2}.ckpt"))
    half.rename(out / "command.ckpt")
    (scratch / "run" / "adapter").rename(out / "after_command")

    module = bishare.BiShareModule("base", CONFIGS["kronecker"], base_dtype="float32")
    data = InstructionData("rows.jsonl", base="base", batch_size=2, num_validation=2)
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir="python",
        max_steps=STEPS // 2,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(out / "python.ckpt")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch_folder:
        target = Path(sys.argv[1]).resolve()
        target.mkdir(parents=True)
        write_adapters(target)
        write_checkpoints(target, Path(scratch_folder).resolve())
