"""One answer learnt by heart, by a base whose end token is not the one that its chat template puts behind answers."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import bishare
from bishare.cli import main
from tests.places import PROJECT

TEMPLATE = PROJECT / "tests" / "data" / "templates" / "chatml.jinja"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer has ``</s>`` as its end of text, and ChatML as its template."""
    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["</s>", "<|im_start|>", "<|im_end|>", *alphabet]
    inner = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learns to answer hi with hello."""
    folder = tmp_path_factory.mktemp("run")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (folder / "rows.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 9, encoding="utf-8")
    adapter = {"class_path": "bishare.LoRAConfig", "init_args": {"r": 8, "targets": ["q", "v", "o", "up", "down"]}}
    options = {
        "--model.base": str(base),
        "--model.base_dtype": "float32",
        "--model.learning_rate": "0.02",
        "--model.warmup_steps": "0",
        "--model.adapter": json.dumps(adapter),
        "--data": "bishare.data.InstructionData",
        "--data.path": str(folder / "rows.jsonl"),
        "--data.batch_size": "8",
        "--data.num_validation": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.max_epochs": "60",
        "--trainer.limit_val_batches": "0",
        "--trainer.enable_progress_bar": "false",
        "--trainer.callbacks": "callbacks.AdapterCheckpoint",
        "--trainer.default_root_dir": str(folder / "run"),
    }
    words = [word for option in options.items() for word in option]
    assert main(["fit", *words]) == 0
    return folder / "run"


def answer(model: torch.nn.Module, base: Path, **options: object) -> str:
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=30, do_sample=False, **options)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]))


def test_generate_stops_behind_the_answer(run: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    module = bishare.BiShareModule.load_from_checkpoint(checkpoint, weights_only=True)
    template = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert module.eval().generate([template], max_new_tokens=30) == ["hello"]


def test_a_merged_export_stops_there(run: Path, base: Path, tmp_path: Path) -> None:
    assert main(["export", "--adapter", str(run / "adapter"), "--format", "merged", "--out", str(tmp_path / "m")]) == 0
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert answer(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), base) == "hello<|im_end|>"


def test_a_peft_export_stops_there(run: Path, base: Path, tmp_path: Path) -> None:
    assert main(["export", "--adapter", str(run / "adapter"), "--format", "peft", "--out", str(tmp_path / "p")]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "p")
    config = GenerationConfig.from_pretrained(tmp_path / "p")
    assert answer(model, base, generation_config=config) == "hello<|im_end|>"
