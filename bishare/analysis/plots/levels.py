"""Pictures of an adapter's levels: ranks beside their bounds, shares of the norm, and losses.

Zhou et al., "Bi-Share LoRA", ICML 2025: ranks as in Figure 4a, shares and losses as in Figure 4b.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from bishare.adapters.factors import Factors, Slot
from bishare.analysis.contribution import LevelLosses
from bishare.analysis.levels import WHOLE, bound
from bishare.analysis.plots.figure import new_figure
from bishare.analysis.ranks import UpdateRank

DPI = 120
COLOURS = {WHOLE: "0.35", "local": "tab:blue", "intra": "tab:orange", "inter": "tab:green"}


def rank_bars(
    measured: Mapping[str, Mapping[Slot, UpdateRank]], updates: Mapping[str, Mapping[Slot, Factors]], *, title: str
) -> Figure:
    """Draw mean ranks over layers, by kind and level: numerical as bars, effective as dots, bounds as lines.

    Args:
        measured: Ranks by level, from ``measure_levels``.
        updates: Updates by level, from ``updates_by_level``.
        title: Text above the picture.
    """
    kinds = _kinds(next(iter(measured.values())))
    figure = new_figure(len(kinds) * (0.3 * len(measured) + 0.5) + 2.2, 3.6, title, dpi=DPI)
    axis = figure.subplots()
    width = 0.8 / len(measured)  # the bars of a kind fill 0.8 of its room
    for place, (level, slots) in enumerate(measured.items()):
        centres, numerical, effective, bounds = [], [], [], []
        for number, kind in enumerate(kinds):
            found = [slot for slot in slots if slot.kind == kind]  # may be empty: a level need not cover all kinds
            centres.append(number + (place + 0.5) * width - 0.4)
            numerical.append(_mean([slots[slot].numerical for slot in found]))
            effective.append(_mean([slots[slot].effective for slot in found]))
            bounds.append(max([bound(slot, updates[level][slot]) for slot in found], default=0))
        axis.bar(centres, numerical, width=0.9 * width, color=_colour(level, place), label=level)
        left, right = [x - width / 2 for x in centres], [x + width / 2 for x in centres]
        axis.hlines(bounds, left, right, color="black", linewidth=1.2, label=_once(place, "bound"))
        axis.scatter(
            centres, effective, s=22, color="white", edgecolor="black", zorder=3, label=_once(place, "effective")
        )
    _label_kinds(axis, kinds)
    axis.set_ylabel("rank, mean over layers\n(bars: numerical)", fontsize=9)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    return figure


def contribution_bars(shares: Mapping[str, Mapping[Slot, float]], losses: LevelLosses | None, *, title: str) -> Figure:
    """Draw the levels' shares of the norm by kind, and the losses with levels switched off if there are any.

    Args:
        shares: Shares by level, from ``norm_shares``.
        losses: Losses from ``level_losses``, or None.
        title: Text above the picture.
    """
    kinds = _kinds(next(iter(shares.values())))
    width, num_panels = (8.6, 2) if losses else (4.8, 1)
    figure = new_figure(width, 3.6, title, dpi=DPI)
    left, *others = figure.subplots(1, num_panels, squeeze=False)[0]
    bottom = [0.0] * len(kinds)
    for place, (level, slots) in enumerate(shares.items()):
        means = []
        for kind in kinds:
            means.append(_mean([share for slot, share in slots.items() if slot.kind == kind]))
        left.bar(range(len(kinds)), means, bottom=bottom, width=0.7, color=_colour(level, place), label=level)
        # The next level stands on top.
        bottom = [low + mean for low, mean in zip(bottom, means, strict=True)]
    _label_kinds(left, kinds)
    left.set_ylabel("share of the levels' norms,\nmean over layers", fontsize=9)
    left.set_ylim(0, 1)
    left.legend(fontsize=8, frameon=False, ncols=len(shares), loc="lower center", bbox_to_anchor=(0.5, 1))
    if losses:
        _draw_losses(others[0], losses)
    return figure


def _draw_losses(axis: Any, losses: LevelLosses) -> None:
    names, values, colours = ["base model", "whole adapter"], [losses.none, losses.all], ["0.75", "0.35"]
    for place, (level, loss) in enumerate(losses.without.items()):
        names.append(f"without {level}")
        values.append(loss)
        colours.append(_colour(level, place))
    for place, (level, loss) in enumerate(losses.only.items()):
        names.append(f"{level} alone")
        values.append(loss)
        colours.append(_colour(level, place))
    axis.barh(names, values, color=colours, height=0.7)
    axis.invert_yaxis()
    # Losses differ little: an axis from 0 would hide the differences.
    spread = max(values) - min(values) or 1e-3
    axis.set_xlim(min(values) - 0.3 * spread, max(values) + 0.25 * spread)
    for place, value in enumerate(values):
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{value:.3f}", (value, place), fontsize=8, **where)
    axis.axvline(losses.all, color="0.35", linewidth=0.8, linestyle=":")
    axis.set_xlabel("loss, nats per token (the axis does not begin at 0)", fontsize=9)
    axis.tick_params(labelsize=8)


def _kinds(slots: Mapping[Slot, object]) -> list[str]:
    """Kinds of weights in the order of the slots, each once."""
    return list(dict.fromkeys(slot.kind for slot in slots))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _once(place: int, label: str) -> str:
    """The label for the first level only, so that the legend has it once."""
    return label if place == 0 else "_nolegend_"


def _colour(level: str, place: int) -> Any:
    return COLOURS.get(level, colormaps["tab10"](place))


def _label_kinds(axis: Any, kinds: Sequence[str]) -> None:
    axis.set_xticks(range(len(kinds)), [kind.rsplit(".", 1)[-1] for kind in kinds])
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    axis.set_xlabel("kind of weight", fontsize=9)
