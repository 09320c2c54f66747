"""``capacity`` through the command line."""

import json
from pathlib import Path

import pytest

from bishare.cli import main
from tests.commands.capacity.tiny import TINY


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A configuration on a tiny base, of which only config.json is there."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "run.yaml").write_text(
        "model:\n  base: tiny\n  adapter: {class_path: bishare.BiShareConfig, init_args: {size: 8}}\n"
    )
    files = ["--config", str(tmp_path / "run.yaml"), "--architecture", str(tmp_path / "config.json")]
    return ["capacity", *files, "--out", str(tmp_path / "out")]


def test_table_plot_and_json_are_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--budget-gb", "0.01"]) == 0
    report = json.loads((tmp_path / "out" / "capacity.json").read_text())
    assert (tmp_path / "out" / "capacity.png").read_bytes().startswith(b"\x89PNG")
    assert "kronecker" in capsys.readouterr().out
    by_method = {method["method"]: method for method in report["methods"]}
    lora = by_method["LoRA r=8"]
    assert lora["own"] == 4 * lora["num_values"]
    assert lora["fits"]["0.01 GB"] == (10_000_000 - report["base_bytes"]) // lora["own"]
    assert by_method["VeRA"]["slot_rank"] == 256
    assert by_method["configured"]["num_values"] < by_method["kronecker"]["num_values"]
    assert "published_figure" not in report


@pytest.mark.parametrize("budget", ["0", "0.00001", "lots"])
def test_budget_below_the_base_is_one_line(
    arguments: list[str], budget: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--budget-gb", budget]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
