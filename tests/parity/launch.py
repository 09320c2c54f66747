"""Runs ``worker.py`` in two processes on the CPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity.worker import VOCABULARY
from tests.places import PROJECT


def tiny_base(folder: Path) -> str:
    """A Llama of 4 layers whose weights are larger than any adapter tensor, so that ZeRO-3 partitions them."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + (parameter.dim() == 1))
    model.save_pretrained(folder)
    return str(folder)


def launch(runs: list[dict[str, Any]], folder: Path, *, seconds: float) -> list[dict[str, Any]]:
    """What rank zero recorded of each run; the launch is killed after ``seconds``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(runs, folder / "runs.pt")
    process = start(folder)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"not done after {seconds} s:\n{output[-4000:]}") from None
    # torchrun's own traceback comes last and says nothing.
    assert process.returncode == 0, output.split("Sending process")[0][-6000:]
    records = torch.load(folder / "records.pt")
    assert len(records) == len(runs)
    return records


def start(folder: Path) -> "subprocess.Popen[str]":
    """Two processes that do the runs of ``folder``, in a group of their own."""
    # --standalone picks a free port.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *torchrun, str(Path(__file__).with_name("worker.py")), str(folder)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
