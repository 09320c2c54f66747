"""Trees of settings laid over one another, and the parts that they name."""

from pathlib import Path

import pytest

from bishare.commands.config.trees import names_part, overlay, read_tree
from bishare.errors import UserError


def test_mappings_merge_and_lists_replace_or_append() -> None:
    below = {"a": {"b": 1, "c": [1]}, "d": [1]}
    above = {"a": {"b": 2, "c+": [2]}, "d": [3], "e+": [4]}
    assert overlay(below, above) == {"a": {"b": 2, "c": [1, 2]}, "d": [3], "e": [4]}
    assert below == {"a": {"b": 1, "c": [1]}, "d": [1]}


def test_another_class_forgets_earlier_options() -> None:
    below = {"class_path": "A", "init_args": {"r": 1}}
    assert overlay(below, {"class_path": "B"}) == {"class_path": "B"}
    assert overlay(below, {"class_path": "A", "init_args": {"s": 2}})["init_args"] == {"r": 1, "s": 2}


@pytest.mark.parametrize("name", ["a.yaml", "sub/a.yml", "a.json"])
def test_parts_end_in_yaml_or_json(name: str) -> None:
    assert names_part(name, "trainer")


@pytest.mark.parametrize("value", ["bishare.LoRAConfig", "a.jsonl", "", 3, None, ["a.yaml"]])
def test_every_other_value_names_no_part(value: object) -> None:
    assert not names_part(value)


def test_files_of_rows_are_no_parts(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"init_args": {"path": "rows.json"}}')
    (tmp_path / "top.yaml").write_text("data: data.json\n")
    assert read_tree(tmp_path / "top.yaml") == {"data": {"init_args": {"path": "rows.json"}}}


def test_parts_are_read_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.yaml").write_text("two: two.yaml\n")
    (tmp_path / "sub" / "two.yaml").write_text("x: 1\n")
    (tmp_path / "top.yaml").write_text("list: [sub/one.yaml]\n")
    assert read_tree(tmp_path / "top.yaml") == {"list": [{"two": {"x": 1}}]}
    (tmp_path / "sub" / "two.yaml").write_text("[")
    with pytest.raises(UserError, match=r"two.yaml is not valid YAML"):
        read_tree(tmp_path / "top.yaml")
