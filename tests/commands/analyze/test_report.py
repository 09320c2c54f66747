"""Tables, JSON and pictures of an analysis."""

import json
from pathlib import Path

from bishare.adapters.lora import LoRAConfig
from bishare.cli import main
from tests.commands.analyze.adapters import write_adapter


def test_single_weight_has_no_pairs_to_compare(base: str, tmp_path: Path) -> None:
    lora = write_adapter(base, tmp_path / "one", LoRAConfig(r=2, targets=["q"], layers=[1]))
    assert main(["analyze", "--adapter", lora, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["similarity"]["updates"]["adapter"]["within_layers"] == {"rmi": [None], "cka": [None]}
