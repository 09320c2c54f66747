"""The command looks inside an adapter, with and without its base, and writes tables, JSON and pictures."""

import json
from pathlib import Path

import pytest
import torch

from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import read_adapter, save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.cli import main
from bishare.commands.analyze.analysis import Options, analyze
from bishare.models.attach import attach
from bishare.models.loading import load_base
from tests.byte_base import write_byte_base
from tests.randomised import randomise

ROWS = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 7)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_byte_base(tmp_path_factory.mktemp("base"))


def adapter(base: str, folder: Path, config: AdapterConfig, *, scale: float = 1.0, trained: bool = True) -> str:
    built = attach(load_base(base, dtype="float32"), config)
    if trained:
        randomise(built)
        with torch.no_grad():
            for name, group in built.groups().items():
                for p in group if name.endswith(".B") else ():
                    p.mul_(0.1 * scale)
    save_adapter(built, folder, base=base)
    return str(folder)


@pytest.fixture
def kronecker(base: str, tmp_path: Path) -> str:
    return adapter(base, tmp_path / "run" / "adapter", BiShareConfig(size=16, r_inter=6))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_the_command_needs_no_base_and_writes_beside_the_adapter(
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


def test_given_text_adds_outputs_and_losses_and_another_adapter_distances(
    kronecker: str, rows: str, base: str, tmp_path: Path
) -> None:
    lora = adapter(base, tmp_path / "lora", LoRAConfig(r=3, targets=["q", "up"]))
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


def test_the_loss_is_that_of_validation(kronecker: str, rows: str, base: str) -> None:
    from bishare.data.encoding import encode
    from bishare.data.row_files import read_rows
    from bishare.models.attach import load_adapter
    from bishare.models.loading import load_tokenizer

    losses = analyze(Options(adapter=kronecker, data=rows)).losses
    assert losses is not None
    model = load_base(base, dtype="float32")
    load_adapter(model, kronecker)
    model.eval()
    total = count = 0.0
    for example in encode(load_tokenizer(base), read_rows(rows), prompt="alpaca", loss_on="answer", max_length=256):
        labels = torch.tensor([example.labels])
        num = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += num * model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.item()
        count += num
    assert losses.all == pytest.approx(total / count, rel=1e-4)


def test_against_itself_there_is_no_distance_and_against_its_double_the_cosine_is_one(
    kronecker: str, base: str, tmp_path: Path
) -> None:
    config = read_adapter(kronecker).config
    itself = analyze(Options(adapter=kronecker, against=kronecker)).differences
    assert itself is not None
    assert itself.whole.effective == pytest.approx(0.0, abs=1e-6)
    double = adapter(base, tmp_path / "double", config, scale=2.0)
    twice = analyze(Options(adapter=kronecker, against=double)).differences
    assert twice is not None
    for difference in twice.slots.values():
        assert difference.cosine == pytest.approx(1.0)
        assert difference.relative == pytest.approx(2 / 3, rel=1e-6)
        assert abs(difference.random_cosine) < 0.3


def test_an_adapter_of_one_layer_and_one_kind_has_no_pairs_and_still_a_report(base: str, tmp_path: Path) -> None:
    lora = adapter(base, tmp_path / "one", LoRAConfig(r=2, targets=["q"], layers=[1]))
    assert main(["analyze", "--adapter", lora, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["similarity"]["updates"]["adapter"]["within_layers"] == {"rmi": [None], "cka": [None]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapter", "nowhere"], "nowhere holds no adapter"),
        (["--adapter", "{kronecker}", "--against", "{other}"], "compare adapters of one base"),
        (["--adapter", "{fresh}"], "was never trained"),
        (["--adapter", "{kronecker}", "--data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--adapter", "{kronecker}", "--data", "{rows}", "--max_length", "3"], "max_length 3"),
        (["--adapter", "{kronecker}", "--num_rows", "0"], "num_rows is 0"),
        (["--adapter", "{kronecker}", "--out", "{rows}"], "is a file"),
        (["--adapter", "{kronecker}", "--agianst", "x"], "did you mean --against?"),
        ([], "adapter is not given"),
    ],
    ids=["missing", "other base", "fresh", "no data", "no answers", "no rows", "out is a file", "typo", "nothing"],
)
def test_a_mistake_is_one_line(
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
        places["other"] = adapter(other, tmp_path / "other", LoRAConfig(r=2))
    if "{fresh}" in options:
        places["fresh"] = adapter(base, tmp_path / "fresh", LoRAConfig(r=2), trained=False)
    assert main(["analyze", *(option.format(**places) for option in options)]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert says in error
