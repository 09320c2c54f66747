"""Every wrong key or value ends in one line that names the file, the key and the way out."""

from pathlib import Path

import pytest

from bishare.commands.config.messages import explain

KNOWN = ["trainer.max_steps", "trainer.precision", "model.base", "model.learning_rate"]

IN_ADAPTER = """Parser key "model.adapter":
  Problem with given class_path 'bishare.BiShareConfig':
    """


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "unrecognized arguments: --learning_rate 1",
            "--learning_rate is not known; did you mean --model.learning_rate?",
        ),
        ("unrecognized arguments: --model.bse=x", "--model.bse is not known; did you mean --model.base?"),
        ("unrecognized arguments: x y", "x is one argument too many; options begin with --."),
        ("argument --trainer.max_steps: expected one argument", "--trainer.max_steps needs a value."),
        ("the following arguments are required: fit.data", "data is not given."),
        (
            "the following arguments are required: model.base, model.adapter",
            "model.base and model.adapter are not given.",
        ),
        ("Something that nobody foresaw", "Something that nobody foresaw."),
    ],
)
def test_argument_is_explained(message: str, line: str) -> None:
    assert explain(message, [], KNOWN) == line


def test_file_that_sets_the_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "a.yaml").write_text("class_path: bishare.BiShareConfig\ninit_args: {r_intr: 4}\n")
    main = tmp_path / "main.yaml"
    main.write_text("model:\n  adapter: adapter/a.yaml\n  learnin_rate: 1\n")
    message = f"{IN_ADAPTER}Option 'r_intr' is not accepted"
    for arguments in (["--config", str(main)], [f"--config={main}"], ["-c", str(main)]):
        assert explain(message, arguments, KNOWN).startswith(f"{tmp_path}/adapter/a.yaml: model.adapter.r_intr")
    message = "Subcommand 'fit' does not accept option 'model.learnin_rate'"
    assert explain(message, ["--config", str(main)], KNOWN).startswith(f"{main}: model.learnin_rate")


@pytest.mark.parametrize(
    "message",
    [
        "Parser key \"model.base\":\n  Expected a <class 'str'>. Got value: None",
        "the following arguments are required: model.base",
    ],
)
def test_misspelt_key_is_named_before_the_missing(tmp_path: Path, message: str) -> None:
    main = tmp_path / "main.yaml"
    main.write_text("model: {bas: x, learning_rate: 1}\n")
    assert explain(message, ["--config", str(main)], KNOWN) == f"{main}: model.bas is not known; did you mean base?"
    for text in ("model: {learning_rate: 1}\n", "model: base\n", "other: 1\n"):
        main.write_text(text)
        assert explain(message, ["--config", str(main)], KNOWN) == "model.base is not given."


def test_no_file_is_blamed_for_command_line(tmp_path: Path) -> None:
    main = tmp_path / "main.yaml"
    main.write_text("model: {adapter: {init_args: {r_local: 4}}}\n")
    message = f"{IN_ADAPTER}Parser key \"r_local\":\n      Expected a <class 'int'>. Got value: two"
    line = "model.adapter.r_local is two; it must be a whole number."
    assert explain(message, ["--config", str(main), "--model.adapter.r_local", "two"], KNOWN) == line
    assert explain(message, ["--config", str(main), "--model.adapter.r_local=two"], KNOWN) == line
    assert explain(message, ["--config", str(main), "--model.base", "two"], KNOWN) == f"{main}: {line}"


def test_broken_yaml_is_named_by_line(tmp_path: Path) -> None:
    main = tmp_path / "main.yaml"
    main.write_text("model:\n  base: x\n  adapter: [1, 2\ntrainer: 1\n")
    line = explain("Problems parsing config: while parsing ...", ["--config", str(main)], KNOWN)
    assert line == f"{main}, line 4 is not valid YAML: expected ',' or ']', but got ':'."
