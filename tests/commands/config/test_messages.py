"""Every wrong key or value ends in one line that names the file, the key and the way out."""

from pathlib import Path

import pytest

from bishare.commands.config.messages import explain

KNOWN = ["trainer.max_steps", "trainer.precision", "model.base", "model.learning_rate"]

IN_ADAPTER = """Parser key "model.adapter":
  Problem with given class_path 'bishare.BiShareConfig':
    """

UNION = """Parser key "{key}":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'A'>, <class 'NoneType'>]
  Errors:
    - {first}
    - Not a valid subclass of Callback
      Subclass types expect one of:
      - a class path (str)
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {{'many': 'words'}}"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (f"{IN_ADAPTER}Option 'r_intr' is not accepted", "model.adapter.r_intr is not known; did you mean r_intra?"),
        (
            f"{IN_ADAPTER}Parser key \"kernel\":\n      Expected a typing.Literal['r_1', 'r_2']. Got value: 1",
            "model.adapter.kernel is 1; it must be r_1 or r_2.",
        ),
        (
            f"{IN_ADAPTER}module 'bishare' has no attribute 'BiShrConfig'",
            "model.adapter: there is no bishare.BiShrConfig; did you mean BiShareConfig?",
        ),
        (
            "Subcommand 'fit' does not accept option 'trainer.max_stps'",
            "trainer.max_stps is not known; did you mean max_steps?",
        ),
        (
            "Subcommand 'fit' does not accept option 'trainr.max_steps'",
            "trainr.max_steps is not known; did you mean trainer.max_steps?",
        ),
        ("Subcommand 'fit' does not accept option 'qqq'", "qqq is not known; see --help."),
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
        ("Parser key \"model.base\":\n  Expected a <class 'str'>. Got value: None", "model.base is not given."),
        (
            "Parser key \"model.learning_rate\":\n  Expected a <class 'float'>. Got value: fast",
            "model.learning_rate is fast; it must be a number.",
        ),
        (
            UNION.format(
                key="data",
                first="Problem with given class_path 'bishare.LoRAConfig':\n        Option 'x' is not accepted",
            ),
            "data.x is not known; see --help.",
        ),
        (
            UNION.format(
                key="trainer.callbacks",
                first="Problem with given class_path 'callbacks.SampleAnswers':\n  Option 'question' is not accepted",
            ),
            "trainer.callbacks.SampleAnswers.question is not known; did you mean questions?",
        ),
        (
            UNION.format(key="data", first="Import path a.B does not correspond to a subclass of LightningDataModule"),
            "data: a.B is no LightningDataModule.",
        ),
        (
            'Parser key "trainer.precision":\n  Does not validate against any of the Union subtypes\n  Errors:\n'
            "    - Expected a typing.Literal[64, 32]\n    - Expected a typing.Literal['bf16']\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'int'>\n  Given value: 17",
            "trainer.precision is 17; it must be 64, 32, bf16 or null.",
        ),
        (
            "Parser key \"trainer\":\nUnable to load config 'trainer/x.yaml'\n"
            "  - Parser key \"trainer.max_steps\":\n    Expected a <class 'int'>. Got value: two",
            "trainer.max_steps is two; it must be a whole number.",
        ),
        (
            "Parser key \"trainer\":\nUnable to load config 'trainer/x.yaml'\n"
            '  - Parser key "trainer": Unable to load config "trainer/x.yaml"',
            "trainer: there is no file trainer/x.yaml (paths are relative to the file that names them).",
        ),
        ("Parser key \"config\": File does not exist: '/a/b.yaml'", "config: there is no file /a/b.yaml."),
        ("Something that nobody foresaw", "Something that nobody foresaw."),
    ],
)
def test_a_tree_of_lines_becomes_one(message: str, line: str) -> None:
    assert explain(message, [], KNOWN) == line


def test_the_file_that_sets_the_key_is_named_even_if_it_is_a_part(tmp_path: Path) -> None:
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
def test_a_misspelt_key_is_named_instead_of_the_missing_one_that_it_stands_for(tmp_path: Path, message: str) -> None:
    main = tmp_path / "main.yaml"
    main.write_text("model: {bas: x, learning_rate: 1}\n")
    assert explain(message, ["--config", str(main)], KNOWN) == f"{main}: model.bas is not known; did you mean base?"
    for text in ("model: {learning_rate: 1}\n", "model: base\n", "other: 1\n"):
        main.write_text(text)
        assert explain(message, ["--config", str(main)], KNOWN) == "model.base is not given."


def test_no_file_is_blamed_for_what_the_command_line_says(tmp_path: Path) -> None:
    main = tmp_path / "main.yaml"
    main.write_text("model: {adapter: {init_args: {r_local: 4}}}\n")
    message = f"{IN_ADAPTER}Parser key \"r_local\":\n      Expected a <class 'int'>. Got value: two"
    line = "model.adapter.r_local is two; it must be a whole number."
    assert explain(message, ["--config", str(main), "--model.adapter.r_local", "two"], KNOWN) == line
    assert explain(message, ["--config", str(main), "--model.adapter.r_local=two"], KNOWN) == line
    assert explain(message, ["--config", str(main), "--model.base", "two"], KNOWN) == f"{main}: {line}"


def test_broken_yaml_is_named_by_file_and_line(tmp_path: Path) -> None:
    main = tmp_path / "main.yaml"
    main.write_text("model:\n  base: x\n  adapter: [1, 2\ntrainer: 1\n")
    line = explain("Problems parsing config: while parsing ...", ["--config", str(main)], KNOWN)
    assert line == f"{main}, line 4 is not valid YAML: expected ',' or ']', but got ':'."
