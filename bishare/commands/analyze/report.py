"""What ``analyze`` found as tables for a terminal, as JSON and as pictures."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import rich
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from bishare.adapters.factors import Slot
from bishare.analysis.differences import Differences
from bishare.analysis.levels import bound
from bishare.analysis.plots.heatmaps import heat_map
from bishare.analysis.plots.levels import contribution_bars, rank_bars
from bishare.analysis.plots.similarity import bars_within, maps_across, maps_of_kinds
from bishare.analysis.similarity.layers import ALL, Maps, Similarity
from bishare.commands.analyze.analysis import Analysis, Beside
from bishare.commands.tables import table_of_figures
from bishare.files import write_text

FILE = "analysis.json"


def show(analysis: Analysis) -> None:
    """Print the tables."""
    console = rich.get_console()
    console.print(f"{analysis.method} on {analysis.base or 'an unnamed base'}: {analysis.num_parameters:,} values")
    console.print(_similarity_table(analysis))
    console.print("Mutual information measures spread: compare it with random factors' of the same.", style="dim")
    console.print(_rank_table(analysis))
    console.print(_contribution_table(analysis))
    if analysis.differences:
        console.print(_difference_table(analysis.differences))


def save(analysis: Analysis, out: Path) -> list[Path]:
    """Write ``analysis.json`` and the pictures into a folder.

    Returns:
        The files.
    """
    path = out / FILE
    write_text(path, json.dumps(_finite(as_json(analysis)), indent=1) + "\n")
    written = [path]
    for name, figure in pictures(analysis).items():
        written.append(out / f"{name}.png")
        figure.savefig(written[-1])
    return written


def pictures(analysis: Analysis) -> dict[str, Figure]:
    """Every picture, by the name of its file."""
    found = _similarity_pictures(analysis.updates, "updates")
    if analysis.outputs:
        found |= _similarity_pictures(analysis.outputs, "outputs")
    kinds = analysis.updates.mine.kinds
    panels = {
        level: {(slot.layer, slot.kind): rank.effective for slot, rank in slots.items()}
        for level, slots in analysis.ranks.items()
    }
    found["ranks"] = rank_bars(analysis.ranks, analysis.levels, title="ranks of the updates")
    found["ranks_by_layer"] = heat_map(panels, title="effective rank", kinds=kinds, digits=1)
    found["contribution"] = contribution_bars(analysis.norm_shares, analysis.losses, title="what the levels contribute")
    if analysis.differences:
        names = {"relative": "against", "random_relative": "against random factors"}
        distances = {
            panel: {(slot.layer, slot.kind): getattr(d, name) for slot, d in analysis.differences.slots.items()}
            for name, panel in names.items()
        }
        title = "relative effective distance, 1.41 for unrelated updates of equal norm"
        found["against"] = heat_map(distances, title=title, kinds=kinds, digits=2)
    return found


def _similarity_pictures(beside: Beside, of: str) -> dict[str, Figure]:
    mine, random = beside.mine, beside.random
    found = {f"{of}_within_layers": bars_within(mine, random, title=f"similarity of {of} within layers")}
    if len(mine.layers) > 1:
        title = f"similarity of {of} across layers"
        found[f"{of}_across_layers"] = maps_across(mine, random, title=title)
        title = f"relative effective distance of {of} across layers, by kind"
        found[f"{of}_by_kind"] = maps_of_kinds(mine, random, "relative", title=title)
    return found


# --- tables ---------------------------------------------------------------------------------------------------------


def _similarity_table(analysis: Analysis) -> Table:
    sides = {"updates": analysis.updates} | ({"outputs": analysis.outputs} if analysis.outputs else {})
    table = table_of_figures("similarity, layers", [name for of in sides for name in (of, "random")])
    table.caption = "means over pairs within layers and across them; unrelated updates are 1.41 apart"
    rows = [_means(side) for beside in sides.values() for side in (beside.mine, beside.random)]
    for name in rows[0]:
        table.add_row(name, *(_number(means[name]) for means in rows))
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


def _rank_table(analysis: Analysis) -> Table:
    kinds = analysis.updates.mine.kinds
    table = table_of_figures("mean rank", ("at most", *(kind.rsplit(".", 1)[-1] for kind in kinds)))
    table.caption = "numerical, effective"
    for level, slots in analysis.ranks.items():
        of_kind = [[rank for slot, rank in slots.items() if slot.kind == kind] for kind in kinds]
        most = max(bound(slot, analysis.levels[level][slot]) for slot in slots)
        means = [
            (_mean(rank.numerical for rank in found), _mean(rank.effective for rank in found)) for found in of_kind
        ]
        table.add_row(level, str(most), *(f"{numerical:.4g}, {effective:.1f}" for numerical, effective in means))
    return table


def _contribution_table(analysis: Analysis) -> Table:
    losses = analysis.losses
    table = table_of_figures(
        "contribution", ("share of norms", *(("loss without", "change", "loss alone") if losses else ()))
    )
    for level, shares in analysis.norm_shares.items():
        row = [f"{_mean(shares.values()):.1%}"]
        if losses:
            change = f"{losses.without[level] - losses.all:+.4f}"
            row += [f"{losses.without[level]:.4f}", change, f"{losses.only[level]:.4f}"]
        table.add_row(level, *row)
    if losses:
        table.caption = f"loss of the whole adapter {losses.all:.4f}, of the base model {losses.none:.4f}"
    return table


def _difference_table(found: Differences) -> Table:
    columns = ("effective distance", "relative", "random", "cosine", "random")
    table = table_of_figures("against, mean over layers", columns)
    for kind in dict.fromkeys(slot.kind for slot in found.slots):
        of_kind = [asdict(difference) for slot, difference in found.slots.items() if slot.kind == kind]
        table.add_row(kind, *(_number(_mean(d[name] for d in of_kind)) for name in _DIFFERENCE))
    whole = asdict(found.whole)
    table.add_row("all weights together", *(_number(whole[name]) for name in _DIFFERENCE))
    return table


_DIFFERENCE = ("effective", "relative", "random_relative", "cosine", "random_cosine")


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def _off_diagonal(values: Tensor) -> float:
    return _mean(value for i, row in enumerate(values.tolist()) for j, value in enumerate(row) if i != j)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


# --- JSON -----------------------------------------------------------------------------------------------------------


def as_json(analysis: Analysis) -> dict[str, Any]:
    """Plain values; layers and kinds name the rows and columns of maps."""
    return {
        "adapter": analysis.adapter,
        "method": analysis.method,
        "base": analysis.base,
        "parameters": analysis.num_parameters,
        "similarity": {"updates": _beside(analysis.updates), "outputs": _beside(analysis.outputs)},
        "ranks": [
            {**_place(slot), "level": level, **asdict(rank), "bound": bound(slot, analysis.levels[level][slot])}
            for level, slots in analysis.ranks.items()
            for slot, rank in slots.items()
        ],
        "contribution": {
            "norm_shares": [
                {**_place(slot), "level": level, "share": share}
                for level, slots in analysis.norm_shares.items()
                for slot, share in slots.items()
            ],
            "losses": asdict(analysis.losses) if analysis.losses else None,
        },
        "against": _against(analysis),
    }


def _beside(beside: Beside | None) -> dict[str, Any] | None:
    return None if beside is None else {"adapter": _similarity(beside.mine), "random": _similarity(beside.random)}


def _similarity(found: Similarity) -> dict[str, Any]:
    return {
        "layers": list(found.layers),
        "kinds": list(found.kinds),
        "entropy": [{"layer": layer, "kind": kind, "nats": nats} for (layer, kind), nats in found.entropy.items()],
        "within_layers": {
            "rmi": list(found.within_rmi.values()),
            "cka": list(found.within_cka.values()),
        },
        "across_layers": {name: _maps(maps) for name, maps in found.across.items()},
    }


def _maps(maps: Maps) -> dict[str, Any]:
    return {name: values.tolist() for name, values in vars(maps).items()}


def _against(analysis: Analysis) -> dict[str, Any] | None:
    if (found := analysis.differences) is None:
        return None
    return {
        "adapter": analysis.against,
        "whole": asdict(found.whole),
        "slots": [{**_place(slot), **asdict(difference)} for slot, difference in found.slots.items()],
    }


def _place(slot: Slot) -> dict[str, Any]:
    return {"layer": slot.layer, "kind": slot.kind}


def _finite(tree: Any) -> Any:
    """What JSON has no word for, not a number and infinity, as null."""
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    return [_finite(value) for value in tree] if isinstance(tree, list) else tree
