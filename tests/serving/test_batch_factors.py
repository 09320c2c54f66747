"""How the rows of a batch are stacked by rank."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.checkpoint import save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.models.attach import attach, remove
from bishare.serving.batch_factors import stack_shapes
from bishare.serving.pool import AdapterPool
from tests.randomised import randomise


def test_adjacent_rows_are_padded_to_like_ranks() -> None:
    large, small = stack_shapes({0: 22, 1: 22, 2: 8, 3: 4}, 6, 8, 6)
    assert dict(large.ranks) == {0: 22, 1: 22}
    assert dict(small.ranks) == {2: 8, 3: 4}
    assert large.num_values + small.num_values == 2 * (22 + 8) * (8 + 6)


def test_scattered_rows_share_one_stack_with_zeros() -> None:
    (shape,) = stack_shapes({2: 4, 0: 22, 3: 22}, 5, 8, 6)
    assert list(shape.ranks.items()) == [(0, 22), (1, 0), (2, 4), (3, 22), (4, 0)]
    assert shape.num_values == 5 * 22 * (8 + 6)


def test_far_smaller_rank_is_not_padded() -> None:
    large, small = stack_shapes({0: 8, 1: 256, 2: 8, 3: 8, 4: 8}, 5, 10, 10)
    assert dict(large.ranks) == {1: 256}
    assert dict(small.ranks) == {0: 8, 1: 0, 2: 8, 3: 8, 4: 8}


def test_few_adapted_rows_need_little_room() -> None:
    (shape,) = stack_shapes({5: 8}, 16, 10, 10)
    assert dict(shape.ranks) == {5: 8}


@pytest.mark.parametrize("few", [False, True], ids=["most rows", "few rows"])
def test_rows_of_unlike_ranks_have_own_logits(
    few: bool, tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    pool_names: list[str | None] = ["1", None, "12", "1", *[None] * (6 if few else 0)]
    ids = torch.randint(3, 64, (len(pool_names), 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for name in ("1", "12"):
            adapter = attach(model, LoRAConfig(r=int(name)))
            randomise(adapter)
            save_adapter(adapter, tmp_path / name)
            rows = [row for row, asked in enumerate(pool_names) if asked == name]
            expected[rows] = model(input_ids=ids[rows]).logits
            remove(model)
    pool = AdapterPool(model, adapter_bytes=1 << 20, factor_bytes=1 << 20)
    for name in ("1", "12"):
        pool.add(name, tmp_path / name)
    assert (pool.logits(ids, pool_names) - expected).abs().max() < 1e-5
