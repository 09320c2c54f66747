"""Every format, file and data module through the command line: two optimizer steps of a tiny Llama."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from bishare.cli import main

CHAT = [
    {"role": "user", "content": "Count."},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "On."},
    {"role": "assistant", "content": "two three"},
]
NAMES = {"user": "human", "assistant": "gpt"}
FIELDS = {
    "alpaca": {"instruction": "Count.", "input": "", "output": "one two three"},
    "chat": {"messages": CHAT},
    "sharegpt": {"conversations": [{"from": NAMES[turn["role"]], "value": turn["content"]} for turn in CHAT]},
    "completion": {"prompt": "one two", "completion": " three"},
    "text": {"text": "one two three"},
}


def write(folder: Path, form: str, kind: str) -> Path:
    rows = [FIELDS[form]] * 12
    path = folder / f"{form}.{kind}"
    match kind:
        case "json":
            path.write_text(json.dumps(rows))
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "parquet":
            pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        case "folder":
            path.mkdir()
            write(folder, form, "parquet").rename(path / "train.parquet")
    return path


@pytest.fixture
def fit(tmp_path, tokenizer, monkeypatch):
    """Trains on some data for two steps and gives what the checkpoint holds."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    base = tmp_path / "base"
    tokenizer.save_pretrained(base)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(base)

    def fit(name: str, class_name: str, *arguments: str, **options) -> dict:
        data = {"batch_size": 4, "num_validation": 2, "max_length": 128, **options}
        config = {
            "model": {
                "base": str(base),
                "base_dtype": "float32",
                "warmup_steps": 0,
                "adapter": {"class_path": "bishare.BiShareConfig", "init_args": {"r_local": 1, "size": 8}},
            },
            "data": {"class_path": f"bishare.data.{class_name}", "init_args": data},
            "trainer": {
                "accelerator": "cpu",
                "default_root_dir": str(tmp_path / name),
                "max_steps": 2,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", str(tmp_path / f"{name}.yaml"), *arguments]) == 0
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)

    return fit


def test_every_format_trains_for_two_steps(tmp_path, fit):
    runs = {
        "alpaca": ("InstructionData", {"path": str(write(tmp_path, "alpaca", "json"))}),
        "chat": ("InstructionData", {"path": str(write(tmp_path, "chat", "jsonl"))}),
        "sharegpt": ("InstructionData", {"path": str(write(tmp_path, "sharegpt", "parquet"))}),
        "completion": ("InstructionData", {"path": str(write(tmp_path, "completion", "folder"))}),
        "text": ("InstructionData", {"path": str(write(tmp_path, "text", "jsonl")), "format": "text"}),
        "mixed": (
            "MixedData",
            {"sources": [{"path": str(tmp_path / f"{form}.jsonl"), "weight": 1.0} for form in ("chat", "text")]},
        ),
        "streamed": ("StreamedData", {"path": str(tmp_path / "completion.folder"), "shuffle_rows": 5}),
    }
    for name, (class_name, options) in runs.items():
        checkpoint = fit(name, class_name, **options)
        assert checkpoint["global_step"] == 2, name
        trained = [value for key, value in checkpoint["state_dict"].items() if key.endswith("B")]
        assert any(value.abs().sum() > 0 for value in trained), name


def test_chat_and_sharegpt_train_alike(tmp_path, fit):
    ends = [
        fit(form, "InstructionData", path=str(write(tmp_path, form, "jsonl")))["state_dict"]
        for form in ("chat", "sharegpt")
    ]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_resumed_stream_ends_as_the_unbroken_one(tmp_path, fit):
    rows = [{"prompt": f"Count to {n}.", "completion": " ".join(map(str, range(n)))} for n in range(1, 23)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    callback = "--trainer.callbacks=ModelCheckpoint"
    options = {"path": str(path), "shuffle_rows": 6}
    saving = [f"{callback}", *(f"--trainer.callbacks.{o}" for o in ("every_n_train_steps=3", "save_last=true"))]
    saving += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename={step}", "--trainer.max_steps=8"]
    whole = fit("whole", "StreamedData", *saving, **options)
    start = tmp_path / "whole" / "checkpoints" / "step=3.ckpt"
    resumed = fit("resumed", "StreamedData", *saving, f"--ckpt_path={start}", **options)
    assert whole["global_step"] == resumed["global_step"] == 6  # the last that was saved
    assert all(torch.equal(whole["state_dict"][key], resumed["state_dict"][key]) for key in whole["state_dict"])
    loops = (run["loops"]["fit_loop"]["state_dict"]["combined_loader"] for run in (whole, resumed))
    assert next(loops) == next(loops)
