"""What ``fit`` refuses: each mistake ends in one line that names the key, the file or the row."""

import shutil
from pathlib import Path

import pytest

from bishare.cli import main
from tests.commands.fit_run import Run, last_line
from tests.processes import Group


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
def test_wrong_option_is_one_line(
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
def test_mistake_in_a_part_names_the_part(
    wrong: str, line: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter.yaml").write_text(wrong)
    assert run("fit") == 1
    error = last_line(capsys)
    assert "adapter.yaml" in error
    assert line in error


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
def test_wrong_rows_are_named(
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
            "is bf16-true: the adapter would be 16 bit",
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
def test_impossible_training_is_refused(
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


def test_batch_that_devices_cannot_share_is_refused(config: Path, tmp_path: Path) -> None:
    options = ["--trainer.devices", "2", "--data.batch_size", "3"]
    group = Group(main, ["fit", "--config", str(config), *options], folder=tmp_path / "group")
    assert group.results(seconds=300) == [1, 1]
    shown = group.output()
    assert "batch_size is 3, which 2 devices cannot share equally; the nearest: 2 or 4." in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.glob("run/**/*.ckpt"))


def test_infinite_loss_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.learning_rate", "1e30", "--model.warmup_steps", "0", "--trainer.max_steps", "4"]
    assert run("fit", *options) == 1
    error = capsys.readouterr().err
    assert "at optimizer step" in error.strip().splitlines()[-1]
    assert "Traceback" not in error


def test_unwritable_run_folder_is_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert run("fit", "--trainer.default_root_dir", str(tmp_path / "file" / "run")) == 1
    error = capsys.readouterr().err
    assert "file" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
