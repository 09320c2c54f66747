"""The pictures of ``analyze``."""

from matplotlib.figure import Figure

from bishare.adapters.factors import Slot
from bishare.analysis.differences import Differences
from bishare.analysis.plots.heatmaps import heat_map
from bishare.analysis.plots.levels import contribution_bars, rank_bars
from bishare.analysis.plots.similarity import bars_within, maps_across, maps_of_kinds
from bishare.commands.analyze.analysis import Analysis, Beside


def pictures(analysis: Analysis) -> dict[str, Figure]:
    """Every picture, by the name of the file without ending."""
    kinds = analysis.updates.mine.kinds
    found = _similarity_pictures(analysis.updates, "updates")
    if analysis.outputs:
        found |= _similarity_pictures(analysis.outputs, "outputs")
    found["ranks"] = rank_bars(analysis.ranks, analysis.levels, title="ranks of the updates")
    panels: dict[str, dict[tuple[int, str], float]] = {}
    for level, ranks in analysis.ranks.items():
        panels[level] = {_cell(slot): rank.effective for slot, rank in ranks.items()}
    found["ranks_by_layer"] = heat_map(panels, title="effective rank", kinds=kinds, digits=1)
    found["contribution"] = contribution_bars(analysis.norm_shares, analysis.losses, title="what the levels contribute")
    if analysis.differences:
        title = "relative effective distance, 1.41 for unrelated updates of equal norm"
        found["against"] = heat_map(_distances(analysis.differences), title=title, kinds=kinds, digits=2)
    return found


def _similarity_pictures(beside: Beside, of: str) -> dict[str, Figure]:
    mine, random = beside.mine, beside.random
    found = {f"{of}_within_layers": bars_within(mine, random, title=f"similarity of {of} within layers")}
    # A single layer has no pair across layers.
    if len(mine.layers) > 1:
        title = f"similarity of {of} across layers"
        found[f"{of}_across_layers"] = maps_across(mine, random, title=title)
        title = f"relative effective distance of {of} across layers, by kind"
        found[f"{of}_by_kind"] = maps_of_kinds(mine, random, "relative", title=title)
    return found


def _distances(differences: Differences) -> dict[str, dict[tuple[int, str], float]]:
    """Distances by panel and cell: to the second adapter, and to random factors of the same spread."""
    against: dict[tuple[int, str], float] = {}
    random: dict[tuple[int, str], float] = {}
    for slot, difference in differences.slots.items():
        against[_cell(slot)] = difference.relative
        random[_cell(slot)] = difference.random_relative
    return {"against": against, "against random factors": random}


def _cell(slot: Slot) -> tuple[int, str]:
    return slot.layer, slot.kind
