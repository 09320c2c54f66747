"""``preview`` on a folder that holds a tokenizer and a config, but no weights."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from bishare.cli import main
from bishare.commands.preview import marked, show_example
from bishare.data import InstructionData

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [("user", "Hé?"), ("assistant", "Ho 🙂."), ("user", "Again?"), ("assistant", "No.")]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(["</s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=TEMPLATE)
    fast.save_pretrained(tmp_path / "base")
    LlamaConfig().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    chat = {"messages": [{"role": role, "content": content} for role, content in CHAT]}
    long = {"messages": [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "late"}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [chat, long, chat, chat]))
    return path


@pytest.fixture
def config(tmp_path: Path, base: Path, rows: Path) -> Path:
    options = {"path": str(rows), "batch_size": 2, "num_validation": 0, "max_length": 100}
    content = {
        "model": {"base": str(base), "adapter": {"class_path": "bishare.LoRAConfig"}},
        "data": {"class_path": "bishare.data.InstructionData", "init_args": options},
        "trainer": {"accelerator": "cpu", "max_steps": 3},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_trained_tokens_stand_in_brackets_without_terminal(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "--config", str(config), "--n", "2"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    example = "<|user|>Hé?</s><|assistant|>[[Ho 🙂.</s>]]<|user|>Again?</s><|assistant|>[[No.</s>]]"
    assert shown.count(example) == 2
    assert "Example 2: 67 tokens, 13 of them trained" in shown
    lines = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert lines["examples"].split()[1] == "3"
    assert lines["dropped"].split()[1] == "1"
    assert lines["cut"].split()[1] == "0"
    assert "67 to 67" in lines["tokens each"]
    assert "19%" in lines["trained"]
    assert "1 of about 134 tokens on 1 device" in lines["micro-batches"]
    assert lines["epoch"].split()[1] == "2"


def test_devices_of_the_trainer_share_the_step(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "--config", str(config), "--trainer.devices", "2"]) == 0
    assert "1 of about 67 tokens on 2 devices" in capsys.readouterr().out
    assert main(["preview", "--config", str(config), "--trainer.devices", "2", "--data.batch_size", "3"]) == 1
    assert "batch_size is 3, which 2 devices cannot share" in capsys.readouterr().err


def test_a_stream_shows_its_first_rows(config: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "StreamedData", "--data.path", str(rows), "--data.num_validation", "1"]
    assert main(["preview", "--config", str(config), *options]) == 0
    shown = capsys.readouterr().out
    assert "(the first of a stream)" in shown
    assert "epoch" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.batch_sise", "3"], "did you mean"),
        (["--data.path", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--data.batch_size", "0"], "batch_size is 0; it must be at least 1."),
        (["--n", "0"], "n is 0; it must be at least 1."),
        (["--data.max_length", "5"], "raise max_length"),
    ],
)
def test_a_mistake_is_one_line(
    config: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--config", str(config), *options]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_trained_tokens_are_coloured_in_a_terminal(base: Path, rows: Path) -> None:
    data = InstructionData(str(rows), base=str(base), num_validation=0, batch_size=2)
    data.setup("fit")
    console = Console(force_terminal=True, width=40, record=True, color_system="standard", no_color=False)
    with console.capture() as capture:
        show_example(console, data, 0)
    assert "\x1b[1;32mNo.</s>\x1b[0m" in capture.get()
    assert "[[" not in capture.get()


def test_parts_add_up_and_first_token_is_untrained(base: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    ids = tokenizer("a 🙂 b")["input_ids"]
    assert list(marked(tokenizer, ids, ids)) == [("a", False), (" 🙂 b", True)]


def test_rows_without_an_answer_are_counted(config: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unanswered = {"messages": [{"role": "user", "content": "Hello?"}]}
    rows.write_text(json.dumps(unanswered) + "\n" + rows.read_text())
    assert main(["preview", "--config", str(config)]) == 0
    assert "without an answer  1 rows, left out" in capsys.readouterr().out


def test_a_token_across_the_joint_is_remarked(
    config: Path, base: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["</s>", *alphabet, "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(base)
    rows.write_text('{"prompt": "x: ", "completion": "a"}\n{"prompt": "x:", "completion": " a"}\n')
    assert main(["preview", "--config", str(config), "--data.batch_size", "1"]) == 0
    assert "1 examples have a token that holds the end of the prompt" in capsys.readouterr().out
