"""Pictures of similarity, the adapter's beside that of random factors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bishare.analysis.plots.similarity import MEASURES, bars_within, maps_across, maps_of_kinds
from bishare.analysis.similarity.layers import Similarity, similarity
from bishare.analysis.similarity.null import random_updates
from tests.analysis.similarity.updates import LAYERS, SHAPES, updates


@pytest.fixture(scope="module")
def pair() -> tuple[Similarity, Similarity]:
    """Of the updates and of random factors."""
    return similarity(updates()), similarity(random_updates(updates()))


def test_bars_hold_means_of_each_layer(pair: tuple[Similarity, Similarity]) -> None:
    mine, random = pair
    figure = bars_within(mine, random, title="within")
    information, cka = figure.axes
    assert [bar.get_height() for bar in information.patches] == pytest.approx(list(mine.within_rmi.values()))
    assert list(information.lines[0].get_ydata()) == pytest.approx(list(random.within_rmi.values()))
    assert [bar.get_height() for bar in cka.patches] == pytest.approx(list(mine.within_cka.values()))
    assert [tick.get_text() for tick in cka.get_xticklabels()] == [str(layer) for layer in LAYERS]


def test_layers_without_pairs_are_drawn_empty(pair: tuple[Similarity, Similarity]) -> None:
    empty = dict.fromkeys(LAYERS, math.nan)
    mine, random = (replace(side, within_rmi=empty, within_cka=empty) for side in pair)
    bars_within(mine, random, title="within").canvas.draw()


def test_maps_stand_above_random_ones(pair: tuple[Similarity, Similarity]) -> None:
    figure = maps_across(*pair, title="across")
    grid = [axis for axis in figure.axes if axis.images]
    assert len(grid) == 2 * len(MEASURES)
    above, below = grid[: len(MEASURES)], grid[len(MEASURES) :]
    for upper, lower in zip(above, below, strict=True):
        assert upper.images[0].get_clim() == lower.images[0].get_clim()
    cosine = above[list(MEASURES).index("cosine")].images[0]
    low, high = cosine.get_clim()
    assert low == -high, "unrelated updates stand in the middle of the colours"
    shown = np.ma.filled(cosine.get_array(), np.nan)
    assert np.isnan(shown).diagonal().all(), "a layer beside itself says nothing"


def test_kinds_share_their_colours(pair: tuple[Similarity, Similarity]) -> None:
    figure = maps_of_kinds(*pair, "relative", title="by kind")
    grid = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in grid[: len(SHAPES)]] == list(SHAPES)
    assert len({axis.images[0].get_clim() for axis in grid}) == 1


def test_maps_without_numbers_can_be_drawn(pair: tuple[Similarity, Similarity]) -> None:
    nothing = torch.full((3, 3), math.nan)
    maps = {name: replace(found, **dict.fromkeys(vars(found), nothing)) for name, found in pair[0].across.items()}
    empty = replace(pair[0], across=maps)
    maps_across(empty, empty, title="nothing").canvas.draw()
