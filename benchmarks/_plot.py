"""A plot of one benchmark's rows as SVG: lines where rows lie on an axis, else bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

__all__ = ["plot"]

COLOURS = {"ours": "#1b6ca8", "limit": "#9aa5b1"}
OTHERS = ("#d98e04", "#5b8c5a", "#b0413e", "#7a5195", "#2a9d8f", "#8d6e63", "#e07a5f", "#3d5a80")
STYLE = {
    "svg.hashsalt": "overwinter", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip


def plot(result: dict[str, Any], path: Path) -> None:
    rows = result["rows"]
    lines = [row for row in rows if "x" in row]
    with plt.rc_context(STYLE):
        figure = _lines(lines) if lines else _bars(rows)
        figure.savefig(
            path, format="svg", bbox_inches="tight", metadata={"Date": None}
        )  # the same for the same numbers
        plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _names(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Everybody in the rows, with his colour."""
    names = list(dict.fromkeys(who for row in rows for who in row["spread"]))
    rest = [who for who in names if who not in COLOURS]
    return {who: COLOURS.get(who) or OTHERS[rest.index(who) % len(OTHERS)] for who in names}


def _figure_of(row: dict[str, Any], who: str) -> float | None:
    value = row.get(who, row["peers"].get(who))
    return None if value is None else float(value)


def _bars(rows: list[dict[str, Any]]) -> Any:
    units = list(dict.fromkeys(row["unit"] for row in rows))
    figure, all_axes = plt.subplots(
        len(units), 1, squeeze=False, figsize=(8, 0.5 * len(units) + 0.2 * sum(len(row["spread"]) + 1 for row in rows))
    )
    colours = _names(rows)
    for axes, unit in zip(all_axes[:, 0], units, strict=True):
        ticks, place = [], 0.0
        for row in [row for row in rows if row["unit"] == unit]:
            present = [who for who in colours if who in row["spread"]]
            ticks.append((place + (len(present) - 1) / 2, row["what"]))
            for who in present:
                middle, (least, most) = _figure_of(row, who) or 0.0, row["spread"][who]
                error = [[max(0.0, middle - least)], [max(0.0, most - middle)]]
                axes.barh(place, middle, 0.85, color=colours[who], xerr=error, error_kw={"lw": 0.7, "ecolor": "#444"})
                place += 1
            place += 0.8
        axes.set_yticks([at for at, _ in ticks], [what for _, what in ticks])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel(unit + (" (less is better)" if any(row.get("less_is_better") for row in rows) else ""))
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    all_axes[0, 0].legend(handles, colours, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _lines(rows: list[dict[str, Any]]) -> Any:
    series = list(dict.fromkeys(row.get("series", "") for row in rows))
    figure, all_axes = plt.subplots(1, len(series), squeeze=False, figsize=(4 * len(series) + 1, 3))
    colours = _names(rows)
    for axes, name in zip(all_axes[0], series, strict=True):
        mine = [row for row in rows if row.get("series", "") == name]
        for who, colour in colours.items():
            points = [(row["x"], _figure_of(row, who), *row["spread"][who]) for row in mine if who in row["spread"]]
            if points:
                xs, middles, least, most = zip(*points, strict=True)
                axes.plot(xs, middles, marker="o", color=colour, label=who)
                axes.fill_between(xs, least, most, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("agents" if name in ("", "memory") else f"{name} agents")
        axes.set_ylabel(mine[0]["unit"])
    all_axes[0, -1].legend(frameon=False)
    figure.tight_layout()
    return figure
