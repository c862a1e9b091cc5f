"""Plot: the same figures as a picture, with matplotlib, which is optional."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from vqshm.bench.measures import MEASURES
from vqshm.bench.report import figure
from vqshm.errors import MissingExtra

if TYPE_CHECKING:
    from pathlib import Path

    from vqshm.bench.rounds import Row

OURS, THEIRS = "#1b7f5c", "#9aa3ad"
SUFFIXES: Final = (".png", ".svg", ".pdf")
_WIDTH: Final = 7.0  # inches of one panel
_LINE: Final = 0.22  # inches of a bar


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check(path: Path) -> None:
    """Raise what would stop `draw` from writing there: MissingExtra, or ValueError for an unknown suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a plot ends with {', '.join(SUFFIXES)}")
    if not available():
        raise MissingExtra("a plot needs matplotlib: pip install 'vqshm[bench]'")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture: a panel per group, ours coloured; round trips as distributions, growth as lines."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")  # no screen is needed
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    panels = _panels([row for row in rows if row.good])
    heights = [_height(name, members) for name, _, members in panels]
    columns = 2 if len(panels) > 2 else 1
    lines = -(-len(panels) // columns)
    tall = [max(heights[place * columns : (place + 1) * columns]) for place in range(lines)]
    picture, grid = pyplot.subplots(
        lines,
        columns,
        figsize=(_WIDTH * columns, sum(tall)),
        squeeze=False,
        height_ratios=tall,
        layout="constrained",
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        name, group, members = panel
        {"roundtrip": _trips, "growth": _growth}.get(name, _bars)(axes, members)
        measure = MEASURES[name]
        axes.set_title(measure.title if name == "growth" else f"{measure.title}: {group}", fontsize=10, loc="left")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    picture.savefig(path, dpi=130)
    pyplot.close(picture)


def _panels(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        group = "" if row.case.measure == "growth" else row.case.group
        panels.setdefault((row.case.measure, group), []).append(row)
    return [(name, group, members) for (name, group), members in panels.items()]


def _height(name: str, members: Sequence[Row]) -> float:
    return 3.5 if name in {"roundtrip", "growth"} else 1.0 + _LINE * len(members)


def _bars(axes: Any, members: Sequence[Row]) -> None:
    ordered = sorted(members, key=lambda row: row.median() or 0.0, reverse=True)
    values = [row.median() or 0.0 for row in ordered]
    bars = axes.barh(
        [f"{row.case.name}, {row.case.mode}" for row in ordered],
        values,
        color=[OURS if row.case.ours else THEIRS for row in ordered],
    )
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.bar_label(bars, [figure(value) for value in values], padding=3, fontsize=7)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(MEASURES[members[0].case.measure].unit, fontsize=8)


def _trips(axes: Any, members: Sequence[Row]) -> None:
    for row in sorted(members, key=lambda row: (not row.case.ours, row.median() or 0.0)):
        bars: dict[float, float] = {}
        for sample in row.good:
            for bound, count in sample.facts["histogram"]:
                bars[bound] = bars.get(bound, 0) + count
        left = total = sum(bars.values())
        bounds, shares = [], []
        for bound in sorted(bars):
            left -= bars[bound]
            bounds.append(bound)
            shares.append(left / total)
        words = f"{row.case.name}, {row.case.mode}: p50 {figure(row.median())} µs"
        axes.step(bounds, shares, where="post", label=words, linewidth=2 if row.case.ours else 1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("µs", fontsize=8)
    axes.set_ylabel("share of the round trips that took longer", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6)


def _growth(axes: Any, members: Sequence[Row]) -> None:
    for group in dict.fromkeys(row.case.group for row in members):
        mine = sorted((row for row in members if row.case.group == group), key=lambda row: row.case.size)
        axes.plot([row.case.size for row in mine], [row.median() for row in mine], marker="o", label=group)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylabel("ns", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6)
