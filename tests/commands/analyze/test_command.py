"""The command looks inside an adapter, with and without its base, and writes tables, JSON and pictures."""

import json
from pathlib import Path

import pytest

from bishare.adapters.lora import LoRAConfig
from bishare.cli import main
from tests.byte_base import write_byte_base
from tests.commands.analyze.adapters import write_adapter


def test_results_stand_beside_adapter_without_base(
    kronecker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bishare.commands.analyze.analysis.load_base", None)
    assert main(["analyze", "--adapter", kronecker]) == 0
    folder = tmp_path / "run" / "analysis"
    found = json.loads((folder / "analysis.json").read_text())
    assert found["similarity"]["updates"]["adapter"]["layers"] == [0, 1, 2]
    assert found["similarity"]["outputs"] is found["contribution"]["losses"] is found["against"] is None
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {
        "updates_within_layers.png",
        "updates_across_layers.png",
        "updates_by_kind.png",
        "ranks.png",
        "ranks_by_layer.png",
        "contribution.png",
    }
    printed = capsys.readouterr().out
    for title in ("random", "numerical, effective", "share of norms"):
        assert title in printed


def test_text_adds_losses_and_adapter_adds_distances(kronecker: str, rows: str, base: str, tmp_path: Path) -> None:
    lora = write_adapter(base, tmp_path / "lora", LoRAConfig(r=3, targets=["q", "up"]))
    options = ["--data", rows, "--against", lora, "--out", str(tmp_path / "out")]
    assert main(["analyze", "--adapter", kronecker, *options]) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    losses = found["contribution"]["losses"]
    assert set(losses["without"]) == set(losses["only"]) == {"local", "intra", "inter"}
    assert losses["all"] != losses["none"]
    outputs = found["similarity"]["outputs"]["adapter"]
    assert len(outputs["across_layers"]["all"]["rmi"]) == 3
    assert {slot["kind"] for slot in found["against"]["slots"]} == {"q", "up"}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} >= {"outputs_across_layers.png", "against.png"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapter", "nowhere"], "nowhere holds no adapter"),
        (["--adapter", "{kronecker}", "--against", "{other}"], "compare adapters of one base"),
        (["--adapter", "{fresh}"], "the adapter is untrained"),
        (["--adapter", "{kronecker}", "--data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--adapter", "{kronecker}", "--data", "{rows}", "--max_length", "3"], "max_length 3"),
        (["--adapter", "{kronecker}", "--num_rows", "0"], "num_rows is 0"),
        (["--adapter", "{kronecker}", "--out", "{rows}"], "is a file"),
        (["--adapter", "{kronecker}", "--agianst", "x"], "did you mean --against?"),
        ([], "adapter is not given"),
    ],
    ids=["missing", "other base", "fresh", "no data", "no answers", "no rows", "out is a file", "typo", "nothing"],
)
def test_mistake_is_one_line(
    options: list[str],
    says: str,
    kronecker: str,
    rows: str,
    base: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"kronecker": kronecker, "rows": rows}
    if "{other}" in options:
        other = write_byte_base(tmp_path / "wide", hidden_size=32, intermediate_size=48)
        places["other"] = write_adapter(other, tmp_path / "other", LoRAConfig(r=2))
    if "{fresh}" in options:
        places["fresh"] = write_adapter(base, tmp_path / "fresh", LoRAConfig(r=2), trained=False)
    assert main(["analyze", *(option.format(**places) for option in options)]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert says in error
