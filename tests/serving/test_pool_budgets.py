"""A pool keeps within its two budgets."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bishare.errors import UserError
from bishare.models.attach import load_adapter
from bishare.serving.pool import AdapterPool
from tests.serving.rows import MIB, ids


def test_adapters_beyond_the_budget_are_read_again(
    tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    roomy = AdapterPool(tiny_model("llama"), adapter_bytes=MIB, factor_bytes=MIB)
    sizes = {}
    for name in ("lora", "slice", "kronecker"):
        roomy.add(name, adapter_folders[name])
        before = roomy.adapters.used
        roomy.logits(ids(1), [name])
        sizes[name] = roomy.adapters.used - before
    tight = AdapterPool(tiny_model("llama"), adapter_bytes=sum(sizes.values()) - 1, factor_bytes=MIB)
    for name in sizes:
        tight.add(name, adapter_folders[name])
    for name in (*sizes, *sizes):
        tight.batches.discard(lambda _: True)
        assert torch.equal(tight.logits(ids(1), [name]), roomy.logits(ids(1), [name]))
    assert tight.adapters.peak <= tight.adapters.budget
    assert len(tight.adapters) == 2


def test_batch_that_never_fits_is_an_error(
    tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    pool = AdapterPool(tiny_model("llama"), adapter_bytes=MIB, factor_bytes=1000)
    pool.add("lora", adapter_folders["lora"])
    with pytest.raises(UserError, match="factor_bytes is 1,000; raise it"):
        pool.logits(ids(1), ["lora"])
    pool = AdapterPool(tiny_model("llama"), adapter_bytes=1000, factor_bytes=MIB)
    pool.add("lora", adapter_folders["lora"])
    with pytest.raises(UserError, match=r"adapter 'lora': .* adapter_bytes is 1,000; raise it"):
        pool.logits(ids(1), ["lora"])


def test_adapter_takes_four_bytes_per_value(
    pool: AdapterPool, tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    pool.logits(ids(1), ["kronecker"])
    adapter = load_adapter(tiny_model("llama"), adapter_folders["kronecker"])
    assert pool.adapters.used == 4 * adapter.num_parameters()
