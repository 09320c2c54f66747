"""The shipped Llama 13B configuration itself, on a tiny base and two CPU processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bishare.adapters.checkpoint import read_adapter
from tests.places import PROJECT


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """24 layers, so that 20 of them can merge, and a tokenizer that knows bytes only."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(["</s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path / "base")
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=24,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_flagship_trains_merges_and_resumes_under_zero_3(base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(3000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def fit(max_steps: int, *options: str) -> str:
        command = [sys.executable, "-m", "bishare", "fit", "--config", "configs/llama13b.yaml"]
        settings = {
            "model.base": base,
            "trainer.accelerator": "cpu",
            "trainer.devices": 2,
            "trainer.max_steps": max_steps,
            "trainer.default_root_dir": tmp_path / "run",
            "data.init_args.path": tmp_path / "rows.jsonl",
            "data.init_args.num_validation": 10,
            "data.init_args.batch_size": 2,
        }
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        done = subprocess.run(
            [*command, *arguments, *options],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=3000,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout

    fit(222)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last)["global_step"] == 222
    shown = fit(242, "--ckpt_path", "last")
    assert "Resumed" in shown
    assert last.is_file()
    assert torch.load(last)["global_step"] == 242
    merges = [json.loads(line) for line in (tmp_path / "run" / "merges.jsonl").read_text().splitlines()]
    groups = {merge["group"] for merge in merges}
    assert groups == {"intra", *(f"local.{kind}" for kind in ("q", "k", "v", "up", "down"))}
    assert [merge["step"] for merge in merges] == [220] * len(groups) + [240] * len(groups)
    tensors = read_adapter(tmp_path / "run" / "adapter").tensors
    assert sum(name.startswith("intra.B") for name in tensors) == 22
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in tensors.values())
