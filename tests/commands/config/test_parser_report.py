"""A tree of lines from the parser becomes a single line."""

import pytest

from bishare.commands.config.parser_report import ParserReport, suggestion

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
        (
            'Parser key "trainer.callbacks":\n\n'
            "  - Expected a path but callbacks.Mine either not accessible or invalid\n"
            "  - Does not validate against any of the Union subtypes\n  Errors:\n    - Expected a <class 'list'>\n"
            "    - Problem with given class_path 'callbacks.Mine':\n"
            "        module 'callbacks' has no attribute 'Mine'\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: callbacks.Mine",
            "trainer.callbacks: there is no callbacks.Mine; check the name.",
        ),
        (
            'Parser key "trainer.callbacks":\n\n  - Expected a path but x.yaml either not accessible or invalid\n'
            "  - Expected a <class 'list'>\n  Given value type: <class 'str'>\n  Given value: x.yaml",
            "trainer.callbacks: there is no file x.yaml (paths are relative to the file that names them).",
        ),
        ("Something that nobody foresaw", "Something that nobody foresaw."),
    ],
)
def test_tree_of_lines_becomes_one(message: str, line: str) -> None:
    assert ParserReport.read(message).line(KNOWN) == line


@pytest.mark.parametrize(
    ("wrong", "prefix", "found"),
    [
        ("model.bse", "", "did you mean base?"),
        ("model.bse", "--", "did you mean --model.base?"),
        ("trainr.max_steps", "", "did you mean trainer.max_steps?"),
        ("learning_rate", "--", "did you mean --model.learning_rate?"),
        ("qqq", "", ""),
    ],
)
def test_nearest_key_is_suggested(wrong: str, prefix: str, found: str) -> None:
    assert suggestion(wrong, KNOWN, prefix) == found


def test_missing_value_is_no_other_problem() -> None:
    missing = "Parser key \"model.base\":\n  Expected a <class 'str'>. Got value: None"
    assert ParserReport.read(missing).is_not_given
    assert not ParserReport.read(f"{IN_ADAPTER}Option 'x' is not accepted").is_not_given
