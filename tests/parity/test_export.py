"""Adapters that two processes trained under ZeRO-3 go to PEFT and into a full model, merged layers too."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bishare.adapters.checkpoint import read_adapter
from bishare.commands.export.command import ExportSettings, export_adapter
from tests.byte_base import write_byte_base
from tests.parity.launch import launch

MERGES = {"start": 2, "interval": 2, "num_merges": 2}
RANKS = {"r_local": 2, "r_intra": 2, "r_inter": 4, "size": 16}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "options": {"r": 4}},
    "slice": {"method": "bishare", "options": {"transform": "slice", **RANKS}},
    "gate": {"method": "bishare", "options": {"transform": "gate", **RANKS}},
    "kronecker": {"method": "bishare", "options": {"transform": "kronecker", **RANKS}},
    "kronecker, merging": {
        "method": "bishare",
        "options": {"transform": "kronecker", "merging": True, **RANKS},
        "merging": MERGES,
    },
    "aslora": {"method": "aslora", "options": {"r": 4}, "merging": MERGES},
    "vera": {"method": "vera", "options": {"r": 16, "d_initial": 1.0}},
    "vblora": {"method": "vblora", "options": {"r": 4, "num_vectors": 16}},
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_method_exports_from_zero_3(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_byte_base(tmp_path / "base")
    folders = {name: tmp_path / name.replace(", ", "_") for name in METHODS}
    common = {"strategy": "zero3", "base": base, "steps": 8, "adapter": True, "dtype": dtype, "rate": 0.02}
    runs = [{**run, **common, "folder": str(folders[name])} for name, run in METHODS.items()]

    records = launch(runs, tmp_path / "launch", seconds=3000)

    for (name, folder), record in zip(folders.items(), records, strict=True):
        assert bool(record["merges"]) == ("merging" in METHODS[name]), name
        state = torch.load(folder / "last.ckpt")["state_dict"]
        for key, tensor in read_adapter(folder / "adapter").tensors.items():
            assert torch.equal(tensor, state[f"model.bishare.{key}"]), (name, key)
        for form, tolerance in (("peft", 1e-4), ("merged", 5e-5)):
            settings = ExportSettings(adapter=str(folder / "adapter"), format=form, out=str(folder / form))
            export = export_adapter(settings, folder / form)
            comparison = export.comparison
            with capsys.disabled():
                print(
                    f"\n{dtype:10}{name:20}{form:8}{comparison}; the adapter moved them by {export.change:.2f}", end=""
                )
            assert export.change > 1e-2 * comparison.largest
            assert comparison.relative < tolerance
            assert comparison.num_equal == comparison.num_positions
