"""The ranks of levels and of their sum, as the paper's Figure 4a has them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bishare.adapters.bishare import BiShareConfig
from bishare.analysis.levels import WHOLE, bound, measure_levels, updates_by_level
from bishare.models.attach import attach


@pytest.fixture(scope="module", params=["slice", "gate", "kronecker"])
def trained(request: pytest.FixtureRequest) -> tuple[str, object]:
    """A trained adapter of ranks (2, 4, 16) on a model wide enough for rank 22."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    adapter = attach(model, BiShareConfig(transform=request.param, r_local=2, r_intra=4, r_inter=16, size=32))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(12):
        tokens = torch.randint(0, 64, (4, 24))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return request.param, adapter


def test_trained_ranks_are_those_of_figure_4a(trained: tuple[str, object]) -> None:
    transform, adapter = trained
    expected = {"slice": {22}, "gate": {4}, "kronecker": {21, 22}}[transform]
    found = {rank.numerical for rank in measure_levels(adapter)[WHOLE].values()}
    assert found <= expected


def test_ranks_keep_bounds_that_add_up(trained: tuple[str, object]) -> None:
    _, adapter = trained
    updates, measured = updates_by_level(adapter), measure_levels(adapter)
    for level, slots in updates.items():
        for slot, update in slots.items():
            assert 0 < measured[level][slot].effective <= measured[level][slot].numerical <= bound(slot, update)
    for slot, update in updates[WHOLE].items():
        assert bound(slot, update) == sum(bound(slot, updates[level][slot]) for level in updates if level != WHOLE)
