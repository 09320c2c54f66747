import pytest

from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.commands.evaluate.published import ROWS, TASKS, published_for


def test_adapter_stands_beside_its_own_row() -> None:
    config = BiShareConfig(transform="slice", r_local=2, r_intra=4, r_inter=16)
    (row,) = published_for(config)
    assert (row.transform, row.ranks) == ("slice", (2, 4, 16))
    assert sum(row.scores) / len(row.scores) == pytest.approx(69.41)


def test_other_ranks_get_the_nearest_row() -> None:
    (row,) = published_for(BiShareConfig(transform="gate", r_local=3, r_intra=4, r_inter=16))
    assert (row.transform, row.ranks) == ("gate", (2, 4, 16))
    assert [row.transform for row in published_for(LoRAConfig())] == ["slice", "gate", "kronecker"]


def test_every_row_scores_every_task() -> None:
    assert {len(row.scores) for row in ROWS} == {len(TASKS)}
