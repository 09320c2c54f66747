"""The tables of ``analyze`` for a terminal."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

import rich
import torch
from rich.table import Table
from torch import Tensor

from bishare.adapters.factors import Slot
from bishare.analysis.differences import Difference, Differences
from bishare.analysis.levels import bound
from bishare.analysis.ranks import UpdateRank
from bishare.analysis.similarity.layers import ALL, Similarity
from bishare.commands.analyze.analysis import Analysis
from bishare.commands.tables import table_of_figures


def show(analysis: Analysis) -> None:
    """Print the tables."""
    console = rich.get_console()
    console.print(f"{analysis.method} on {analysis.base or 'an unnamed base'}: {analysis.num_parameters:,} values")
    console.print(similarity_table(analysis))
    console.print("Mutual information measures spread: compare it with random factors' of the same.", style="dim")
    console.print(rank_table(analysis))
    console.print(contribution_table(analysis))
    if analysis.differences:
        console.print(difference_table(analysis.differences))


def similarity_table(analysis: Analysis) -> Table:
    """Mean similarities of updates and outputs, each beside random factors of the same spread."""
    sides = {"updates": analysis.updates}
    if analysis.outputs:
        sides["outputs"] = analysis.outputs
    columns: list[str] = []
    means: list[dict[str, float]] = []
    for name, beside in sides.items():
        columns += [name, "random"]
        means += [_means(beside.mine), _means(beside.random)]
    table = table_of_figures("similarity, layers", columns)
    table.caption = "means over pairs within layers and across them; unrelated updates are 1.41 apart"
    for name in means[0]:
        table.add_row(name, *(_number(of_column[name]) for of_column in means))
    return table


def _means(found: Similarity) -> dict[str, float]:
    whole = found.across[ALL]
    return {
        "mutual information within": _mean(found.within_rmi.values()),
        "CKA within": _mean(found.within_cka.values()),
        "mutual information across": _off_diagonal(whole.rmi),
        "CKA across": _off_diagonal(whole.cka),
        "cosine across": _off_diagonal(whole.cosine),
        "relative distance across": _off_diagonal(whole.relative),
    }


def rank_table(analysis: Analysis) -> Table:
    """Mean numerical and effective ranks by level and kind of weight, with the highest possible rank."""
    kinds = analysis.updates.mine.kinds
    table = table_of_figures("mean rank", ("at most", *(kind.rsplit(".", 1)[-1] for kind in kinds)))
    table.caption = "numerical, effective"
    for level, ranks in analysis.ranks.items():
        highest = max(bound(slot, analysis.levels[level][slot]) for slot in ranks)
        table.add_row(level, str(highest), *(_mean_ranks(ranks, kind) for kind in kinds))
    return table


def _mean_ranks(ranks: Mapping[Slot, UpdateRank], kind: str) -> str:
    of_kind = [rank for slot, rank in ranks.items() if slot.kind == kind]
    numerical = _mean(rank.numerical for rank in of_kind)
    effective = _mean(rank.effective for rank in of_kind)
    return f"{numerical:.4g}, {effective:.1f}"


def contribution_table(analysis: Analysis) -> Table:
    """Share of the norms by level; with a text, the losses without a level and with a level alone."""
    losses = analysis.losses
    columns = ["share of norms"]
    if losses:
        columns += ["loss without", "change", "loss alone"]
    table = table_of_figures("contribution", columns)
    for level, shares in analysis.norm_shares.items():
        row = [f"{_mean(shares.values()):.1%}"]
        if losses:
            change = f"{losses.without[level] - losses.all:+.4f}"
            row += [f"{losses.without[level]:.4f}", change, f"{losses.only[level]:.4f}"]
        table.add_row(level, *row)
    if losses:
        table.caption = f"loss of the whole adapter {losses.all:.4f}, of the base model {losses.none:.4f}"
    return table


def difference_table(found: Differences) -> Table:
    """Distances to the second adapter by kind of weight, and for all weights as one long vector."""
    columns = ("effective distance", "relative", "random", "cosine", "random")
    table = table_of_figures("against, mean over layers", columns)
    by_kind: dict[str, list[Difference]] = {}
    for slot, difference in found.slots.items():
        by_kind.setdefault(slot.kind, []).append(difference)
    for kind, differences in by_kind.items():
        table.add_row(kind, *_difference_cells(differences))
    table.add_row("all weights together", *_difference_cells([found.whole]))
    return table


def _difference_cells(found: Iterable[Difference]) -> list[str]:
    """Means in the order of the table's columns."""
    differences = list(found)
    columns = (
        [difference.effective for difference in differences],
        [difference.relative for difference in differences],
        [difference.random_relative for difference in differences],
        [difference.cosine for difference in differences],
        [difference.random_cosine for difference in differences],
    )
    return [_number(_mean(column)) for column in columns]


def _mean(values: Iterable[float]) -> float:
    """Mean of the finite values; not a number without any."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def _off_diagonal(values: Tensor) -> float:
    """Mean of a matrix [n, n] without the diagonal, where a layer stands beside itself."""
    is_pair = ~torch.eye(len(values), dtype=torch.bool)
    return _mean(values[is_pair].tolist())


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
