"""Pictures of an adapter's levels: ranks beside their bounds (Figure 4a), shares of the norm and losses (Figure 4b)."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.contribution import LevelLosses
from bishare.analysis.levels import WHOLE, bound
from bishare.analysis.ranks import UpdateRank

COLOURS = {WHOLE: "0.35", "local": "tab:blue", "intra": "tab:orange", "inter": "tab:green"}


def rank_bars(
    measured: Mapping[str, Mapping[Slot, UpdateRank]], updates: Mapping[str, Mapping[Slot, Factors]], *, title: str
) -> Figure:
    """Mean ranks over layers, by kind and level: numerical as bars, effective as dots, bounds as lines.

    Args:
        measured: By level, as of ``measure_levels``.
        updates: By level, as of ``updates_by_level``.
        title: Above the picture.
    """
    kinds = _kinds(next(iter(measured.values())))
    figure = _figure(len(kinds) * (0.3 * len(measured) + 0.5) + 2.2, 3.6, title)
    axis = figure.subplots()
    width = 0.8 / len(measured)
    for place, (level, slots) in enumerate(measured.items()):
        xs = [number + (place + 0.5) * width - 0.4 for number in range(len(kinds))]
        of_kind = [[slot for slot in slots if slot.kind == kind] for kind in kinds]
        numerical = [_mean([slots[slot].numerical for slot in found]) for found in of_kind]
        effective = [_mean([slots[slot].effective for slot in found]) for found in of_kind]
        bounds = [max([bound(slot, updates[level][slot]) for slot in found], default=0) for found in of_kind]
        axis.bar(xs, numerical, width=0.9 * width, color=_colour(level, place), label=level)
        ends = [x - width / 2 for x in xs], [x + width / 2 for x in xs]
        axis.hlines(bounds, *ends, color="black", linewidth=1.2, label=_once(place, "bound"))
        axis.scatter(xs, effective, s=22, color="white", edgecolor="black", zorder=3, label=_once(place, "effective"))
    _name_kinds(axis, kinds)
    axis.set_ylabel("rank, mean over layers\n(bars: numerical)", fontsize=9)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    return figure


def contribution_bars(shares: Mapping[str, Mapping[Slot, float]], losses: LevelLosses | None, *, title: str) -> Figure:
    """The levels' shares of the norm by kind, and the losses with levels switched off where they were measured.

    Args:
        shares: By level, as of ``norm_shares``.
        losses: As of ``level_losses``, or None.
        title: Above the picture.
    """
    kinds = _kinds(next(iter(shares.values())))
    figure = _figure(8.6 if losses else 4.8, 3.6, title)
    left, *others = figure.subplots(1, 2 if losses else 1, squeeze=False)[0]
    bottom = [0.0] * len(kinds)
    for place, (level, slots) in enumerate(shares.items()):
        means = [_mean([share for slot, share in slots.items() if slot.kind == kind]) for kind in kinds]
        left.bar(range(len(kinds)), means, bottom=bottom, width=0.7, color=_colour(level, place), label=level)
        bottom = [low + mean for low, mean in zip(bottom, means, strict=True)]
    _name_kinds(left, kinds)
    left.set_ylabel("share of the levels' norms,\nmean over layers", fontsize=9)
    left.set_ylim(0, 1)
    left.legend(fontsize=8, frameon=False, ncols=len(shares), loc="lower center", bbox_to_anchor=(0.5, 1))
    if losses:
        _draw_losses(others[0], losses)
    return figure


def _draw_losses(axis: Any, losses: LevelLosses) -> None:
    bars = {"base model": (losses.none, "0.75"), "whole adapter": (losses.all, "0.35")}
    for place, level in enumerate(losses.without):
        bars[f"without {level}"] = losses.without[level], _colour(level, place)
    for place, level in enumerate(losses.only):
        bars[f"{level} alone"] = losses.only[level], _colour(level, place)
    values = [value for value, _ in bars.values()]
    axis.barh(list(bars), values, color=[colour for _, colour in bars.values()], height=0.7)
    axis.invert_yaxis()
    spread = max(values) - min(values) or 1e-3
    axis.set_xlim(min(values) - 0.3 * spread, max(values) + 0.25 * spread)
    for place, value in enumerate(values):
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{value:.3f}", (value, place), fontsize=8, **where)
    axis.axvline(losses.all, color="0.35", linewidth=0.8, linestyle=":")
    axis.set_xlabel("loss, nats per token (the axis does not begin at 0)", fontsize=9)
    axis.tick_params(labelsize=8)


def _kinds(slots: Mapping[Slot, object]) -> list[str]:
    return list(dict.fromkeys(slot.kind for slot in slots))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _once(place: int, label: str) -> str:
    """One entry in the legend for what every level has."""
    return label if place == 0 else "_nolegend_"


def _colour(level: str, place: int) -> Any:
    return COLOURS.get(level, colormaps["tab10"](place))


def _name_kinds(axis: Any, kinds: Sequence[str]) -> None:
    axis.set_xticks(range(len(kinds)), [kind.rsplit(".", 1)[-1] for kind in kinds])
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    axis.set_xlabel("kind of weight", fontsize=9)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)  # draws without a display and leaves pyplot's state alone
    figure.suptitle(title, fontsize=11)
    return figure
