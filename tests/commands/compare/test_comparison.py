"""A comparison's configuration is checked as a whole before anything is trained."""

from pathlib import Path

import pytest
import yaml

from bishare.commands.compare.comparison import read_comparison
from bishare.errors import UserError

TREE = {
    "folder": "runs/x",
    "fit": {"model": {"base": "b", "adapter": "part.yaml"}, "data": {"class_path": "D"}},
    "metric": "val/loss",
    "goal": "min",
    "seeds": [0, 1],
    "learning_rates": [1e-3, 2e-3],
    "methods": {"one": {"label": "One"}, "two": {"learning_rates": [0.1], "solve": "r"}},
}


def write(folder: Path, **changes: object) -> Path:
    (folder / "part.yaml").write_text("class_path: bishare.LoRAConfig\n")
    tree = {key: value for key, value in (TREE | changes).items() if value is not None}
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_parts_are_read_and_runs_counted(tmp_path: Path) -> None:
    comparison = read_comparison(write(tmp_path))
    assert comparison.fit["model"]["adapter"] == {"class_path": "bishare.LoRAConfig"}
    assert comparison.methods["one"].learning_rates == (1e-3, 2e-3)
    assert comparison.methods["two"].learning_rates == (0.1,)
    assert comparison.num_runs == (2 + 1) + (1 + 1)
    assert read_comparison(write(tmp_path, tasks={"a": {}, "b": {}})).num_runs == 10
    assert read_comparison(write(tmp_path), folder=tmp_path / "y", match="800").match == 800


def test_file_is_laid_over_the_configuration(tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("learning_rates: [0.5]\nfit: {model: {base: large}}\n")
    comparison = read_comparison(write(tmp_path), over=over)
    assert comparison.fit["model"] == {"base": "large", "adapter": {"class_path": "bishare.LoRAConfig"}}
    assert comparison.methods["one"].learning_rates == (0.5,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": None}, "metric is not given"),
        ({"sedes": [1]}, "sedes is not known; known are folder"),
        ({"goal": "most"}, "goal is most; it must be max or min"),
        ({"seeds": [-1]}, "give whole numbers from 0"),
        ({"learning_rates": ["fast"]}, "give a list of numbers"),
        ({"learning_rates": [0]}, "each must be positive"),
        ({"methods": {"one": {"modle": {}}}}, "methods.one: modle is not known"),
        ({"tasks": {"a": 3}}, "tasks.a is 3; want keys and values"),
        ({"match": "three"}, "match is three; give a number of parameters or one of one, two"),
        ({"fit": {"model": "nowhere.yaml"}}, "nowhere.yaml cannot be read"),
    ],
)
def test_mistake_is_named_with_file_and_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_comparison(write(tmp_path, **changes))
    assert message in str(error.value)
