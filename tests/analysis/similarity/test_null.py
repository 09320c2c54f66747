"""Random updates have the spread of an update and nothing else in common with it."""

import pytest
import torch

from bishare.adapters.factors import Factors
from bishare.analysis.similarity.layers import ALL, similarity
from bishare.analysis.similarity.null import random_updates
from tests.analysis.similarity.updates import slot, updates


def test_random_updates_share_the_spread_alone() -> None:
    found = updates()
    null = random_updates(found)
    for slot_, update in found.items():
        drawn = null[slot_]
        assert (drawn.B @ drawn.A).std().item() == pytest.approx((update.B @ update.A).std().item(), rel=1e-4)
        assert drawn.rank == update.rank
    mine, random = similarity(found), similarity(null)
    torch.testing.assert_close(random.across[ALL].rmi, mine.across[ALL].rmi, atol=0.02, rtol=0)
    assert mine.across["q"].cosine[0, 0].item() == pytest.approx(1.0)
    assert abs(random.across[ALL].cosine[0, 1].item()) < 0.3


def test_nearly_equal_entries_give_nearly_zero() -> None:
    constant = {slot(0, "q", 50, 40): Factors(torch.full((3, 50), 0.1), torch.full((40, 3), 0.7))}
    (drawn,) = random_updates(constant).values()
    assert (drawn.B @ drawn.A).abs().max() < 1e-6


def test_zeros_give_zeros() -> None:
    zero = {slot(0, "q", 4, 4): Factors(torch.randn(2, 4), torch.zeros(4, 2))}
    (drawn,) = random_updates(zero).values()
    assert not drawn.B.any()


def test_seed_decides_every_draw() -> None:
    first, again, other = random_updates(updates()), random_updates(updates()), random_updates(updates(), seed=100)
    for place, drawn in first.items():
        assert torch.equal(drawn.A, again[place].A)
        assert not torch.equal(drawn.A, other[place].A)
