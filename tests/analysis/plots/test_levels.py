"""Bars of ranks and of contributions hold the numbers that they are given."""

import pytest
import torch

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.contribution import LevelLosses
from bishare.analysis.plots.levels import COLOURS, contribution_bars, rank_bars
from bishare.analysis.ranks import UpdateRank

SLOTS = [
    Slot(name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=12, out_features=8)
    for layer, kind in ((0, "attn.q"), (1, "attn.q"), (0, "up"))
]
LOSSES = LevelLosses(all=1.0, none=3.0, without={"local": 2.0, "inter": 1.5}, only={"local": 1.25, "inter": 2.5})


def test_ranks_are_means_over_layers() -> None:
    ranks = [UpdateRank(effective=effective, numerical=n, norm=1.0) for effective, n in ((1.5, 2), (2.5, 4), (3.0, 3))]
    measured = {"local": dict(zip(SLOTS, ranks, strict=True))}
    updates = {"local": {slot: Factors(torch.zeros(4, 12), torch.zeros(8, 4)) for slot in SLOTS}}
    figure = rank_bars(measured, updates, title="ranks")

    (axis,) = figure.axes
    assert figure.get_suptitle() == "ranks"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["q", "up"]
    assert [bar.get_height() for bar in axis.patches] == [3.0, 3.0]
    bounds, effective = axis.collections
    assert [line[0][1] for line in bounds.get_segments()] == [4, 4]
    assert [y for _, y in effective.get_offsets()] == [2.0, 3.0]


def test_shares_are_stacked_to_one() -> None:
    shares = {"local": dict.fromkeys(SLOTS, 0.25), "inter": dict.fromkeys(SLOTS, 0.75)}
    (axis,) = contribution_bars(shares, None, title="shares").axes
    bars = [(bar.get_y(), bar.get_height()) for bar in axis.patches]
    assert bars == [(0.0, 0.25), (0.0, 0.25), (0.25, 0.75), (0.25, 0.75)]


def test_losses_stand_beside_the_shares() -> None:
    shares = {"local": dict.fromkeys(SLOTS, 0.5), "inter": dict.fromkeys(SLOTS, 0.5)}
    _, axis = contribution_bars(shares, LOSSES, title="losses").axes
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    found = {name: bar.get_width() for name, bar in zip(names, axis.patches, strict=True)}
    assert found == {
        "base model": 3.0,
        "whole adapter": 1.0,
        "without local": 2.0,
        "without inter": 1.5,
        "local alone": 1.25,
        "inter alone": 2.5,
    }
    assert axis.get_xlim()[0] < 1.0 < 3.0 < axis.get_xlim()[1]


@pytest.mark.parametrize("level", ["local", "intra", "inter"])
def test_level_has_the_same_colour_everywhere(level: str) -> None:
    from matplotlib.colors import to_rgba

    (axis,) = contribution_bars({level: dict.fromkeys(SLOTS, 1.0)}, None, title="colours").axes
    assert axis.patches[0].get_facecolor() == to_rgba(COLOURS[level])
