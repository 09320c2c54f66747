"""The report of ``analyze``: JSON and pictures in a folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bishare.adapters.factors import Slot
from bishare.analysis.levels import bound
from bishare.analysis.similarity.layers import Maps, Similarity
from bishare.commands.analyze.analysis import Analysis, Beside
from bishare.commands.analyze.pictures import pictures
from bishare.files import write_text

FILE = "analysis.json"


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


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The analysis as plain values; layers and kinds name the rows and columns of maps."""
    return {
        "adapter": analysis.adapter,
        "method": analysis.method,
        "base": analysis.base,
        "parameters": analysis.num_parameters,
        "similarity": {"updates": _beside(analysis.updates), "outputs": _beside(analysis.outputs)},
        "ranks": _ranks(analysis),
        "contribution": {
            "norm_shares": _norm_shares(analysis),
            "losses": asdict(analysis.losses) if analysis.losses else None,
        },
        "against": _against(analysis),
    }


def _ranks(analysis: Analysis) -> list[dict[str, Any]]:
    found = []
    for level, ranks in analysis.ranks.items():
        for slot, rank in ranks.items():
            highest = bound(slot, analysis.levels[level][slot])
            found.append({**_place(slot), "level": level, **asdict(rank), "bound": highest})
    return found


def _norm_shares(analysis: Analysis) -> list[dict[str, Any]]:
    found = []
    for level, shares in analysis.norm_shares.items():
        for slot, share in shares.items():
            found.append({**_place(slot), "level": level, "share": share})
    return found


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
    """None in the place of not a number and infinity, which JSON cannot hold."""
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    return [_finite(value) for value in tree] if isinstance(tree, list) else tree
