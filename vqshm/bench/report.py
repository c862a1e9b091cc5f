"""Report: the tables for a person, and the document for a program."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from vqshm import __version__, core
from vqshm.bench.measures import MEASURES, Measure, Settings
from vqshm.bench.rounds import DISTURBED, Row, Sample, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqshm.bench.peers import Peer

BAD, GOOD, DIM, STRONG = "bold red", "green", "dim", "bold"
ORDER: Final = ("single", "batch", "view", "reserve", "ping-pong", "call", "1 to 4, share", "1 to 4, broadcast")
BARS: Final = "▁▂▃▄▅▆▇█"

Column = tuple[str, Callable[[Row], str | Text]]


def figure(value: float | None) -> str:
    """Three or four digits: 9.31, 48.2, 1,204, 3.4M."""
    if value is None:
        return ""
    if value >= 1e7:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def per_second(nanoseconds: float | None) -> str:
    """What that makes in a second: 812k, 4.31M."""
    if not nanoseconds:
        return ""
    rate = 1e9 / nanoseconds
    return f"{rate / 1e6:.2f}M" if rate >= 1e6 else f"{rate / 1e3:.0f}k" if rate >= 1e4 else f"{rate:,.0f}"


def ratio(value: float) -> str:
    """Two digits: 0.85x, 2.4x, 31x."""
    return f"{value:.0f}x" if value >= 10 else f"{value:.2g}x"


# -- the tables --------------------------------------------------------------------------------------------------------


def _median(*path: str) -> Callable[[Row], str]:
    return lambda row: figure(row.median(*path))


def _per_thousand(side: str, name: str) -> Callable[[Row], str]:
    def column(row: Row) -> str:
        count, messages = row.median(side, name), row.median(side, "messages")
        return figure(count / messages * 1000) if count is not None and messages else ""

    return column


def _histogram(row: Row) -> str:
    """From half the median to sixteen times it, four bars for each doubling, the last one for all that lies beyond."""
    middle = row.median("p50")
    if not middle:
        return ""
    bounds = [middle * 2 ** (step / 4) for step in range(-4, 17)]
    bars = [0.0] * len(bounds)
    for sample in row.good:
        for bound, count in sample.facts["histogram"]:
            bars[next((place for place, upper in enumerate(bounds) if bound <= upper), -1)] += count
    most = max(bars)
    return "".join(BARS[min(7, int(8 * (bar / most) ** 0.5))] if bar else " " for bar in bars)


def _rate(row: Row) -> str:
    return per_second(row.median())


EXTRA: Final[dict[str, tuple[Column, ...]]] = {
    "core": (("best", _median("best")), ("per s", _rate)),
    "oneway": (("per s", _rate), ("CPU ns", _median("cpu_ns"))),
    "interpreted": (("per s", _rate), ("CPU ns", _median("cpu_ns"))),
    "roundtrip": (("p99", _median("p99")), ("p99.9", _median("p999")), ("½ p50 … 16 p50", _histogram)),
    "fanin": (("per s", _rate),),
    "fanout": (("per s", _rate),),
    "objects": (("per s", _rate), ("CPU ns", _median("cpu_ns"))),
    "idle": (("sender", _median("sender")), ("receiver", _median("receiver"))),
    "wakeup": (("lowest", _median("min")), ("highest", _median("max"))),
    "kicks": (
        ("suppressed", _per_thousand("sender", "kicks_suppressed")),
        ("sender waits", _per_thousand("sender", "waits")),
        ("calls", _per_thousand("receiver", "calls")),
        ("receiver waits", _per_thousand("receiver", "waits")),
    ),
    "growth": (),
}
LEFT: Final = ("", "who", "mode", "others, by ours", "½ p50 … 16 p50")
WHO: Final = ("", "who", "mode", "size")


def tables(measure: Measure, rows: Sequence[Row]) -> Iterator[Table | Text]:
    """All rows of one measure, a table for each group, and behind it who failed, and why."""
    for group in dict.fromkeys(row.case.group for row in rows):
        members = sorted((row for row in rows if row.case.group == group), key=_order)
        yield Text()
        yield _table(measure, group, members)
        for row in members:
            if row.error:
                yield Text(f"  {row.case.name}, {row.case.mode}: {row.error}", BAD)


def _table(measure: Measure, group: str, rows: Sequence[Row]) -> Table:
    columns = list(_columns(measure, rows))
    made = Table(
        title=f"{measure.title}: {group}",
        title_justify="left",
        title_style=STRONG,
        header_style=DIM,
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for heading, _ in columns:
        last = heading == columns[-1][0]
        justify: Any = "left" if heading in LEFT else "right"
        made.add_column(heading, justify=justify, no_wrap=not last, overflow="fold")
    for row in rows:
        cells = (column(row) if row.good or heading in (*WHO, measure.unit) else "" for heading, column in columns)
        made.add_row(*cells)
    return made


def _columns(measure: Measure, rows: Sequence[Row]) -> Iterator[Column]:
    """What the tables of a measure tell of each row."""
    yield "", lambda row: Text("~" if row.good and row.disturbed else "", BAD)
    yield "who", lambda row: Text(row.case.name, GOOD if row.case.ours else "")
    if measure.name == "growth":
        yield "size", lambda row: f"{row.case.size:,}"
    else:
        yield "mode", lambda row: row.case.mode
    yield measure.unit, lambda row: Text(figure(row.median()), STRONG) if row.good else Text("failed", BAD)
    if any(len(row.good) > 1 for row in rows):
        yield "low … high", _span
    yield from EXTRA[measure.name]
    if any(row.probe for row in rows):
        yield "probe ns", lambda row: "one CPU" if row.probe == inf else figure(row.probe)
    if measure.name == "growth":
        yield "by the smallest", lambda row: _growth(row, rows)
    elif any(row.ratios for row in rows):
        yield "others, by ours", _rivals


def _order(row: Row) -> tuple[bool, int, float]:
    if row.case.measure == "growth":
        return False, row.case.size, 0.0
    if row.case.ours:
        return False, ORDER.index(row.case.mode) if row.case.mode in ORDER else 0, 0.0
    return True, 0, row.median() or float("inf")


def _span(row: Row) -> Text:
    low, high = row.span
    return Text(f"{figure(low)} … {figure(high)}", DIM)


def _growth(row: Row, members: Sequence[Row]) -> str:
    """This cost by that of the smallest size, in the same rounds."""
    first = min(members, key=lambda member: member.case.size)
    base, mine = first.median(), row.median()
    return "" if row is first or not base or not mine else ratio(mine / base)


def _rivals(row: Row) -> Text:
    """How the best of the others compares: in the same mode, and in any."""
    words = Text()
    same, best = row.best_rival(row.rivals()), row.best_rival()
    for found, word in ((same, ""), (best if best != same else None, "any mode: ")):
        if found:
            words.append("; " if words else "").append(word)
            words.append(ratio(found[1]), BAD if found[1] < 1 else GOOD).append(f" {found[0]}")
    return words


def notes(rows: Iterable[Row], skipped: dict[str, str]) -> Iterator[str]:
    """What a reader of the tables has to know."""
    yield "Figures are costs, medians over the rounds; 2x: the other one takes twice as long in the same round."
    yield (
        "probe: nanoseconds for a cache line to go to the other process and back, just before and after the sample;"
        " about 110 where the processors are near, 500 where they are far, and every two-process figure moves with it;"
        " `one CPU` where the two never ran at the same time."
    )
    if core.kind() == "interpreted":
        yield "The interpreted core ran: the core loop, the probe and all of vqshm's figures are the interpreter's."
    if any(row.good and row.disturbed for row in rows):
        yield f"~ strangers used more than {DISTURBED:.0%} of a processor meanwhile."
    for name, why in skipped.items():
        yield f"skipped: {name} ({why})"


# -- the document ------------------------------------------------------------------------------------------------------


def document(
    samples: Sequence[Sample], settings: Settings, skipped: dict[str, str], *, complete: bool
) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "format": 1,
        "complete": complete,
        "machine": machine(settings.others),
        "settings": {"seconds": settings.seconds, "rounds": settings.rounds, "quick": settings.quick},
        "skipped": skipped,
        "summary": [row.plain() for row in summarise(samples)],
        "samples": [sample.plain() for sample in samples],
    }


def machine(others: Sequence[type[Peer]]) -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "vqshm": __version__,
        "core": core.kind(),
        "core_reason": core.reason(),
        "versions": {peer.package: peer.version() for peer in others if peer.package},
    }


def headline(facts: dict[str, Any]) -> Iterator[str]:
    """The same in a few lines."""
    yield f"{facts['when']}, {facts['processor']}, {facts['processors']} processors, {facts['system']}"
    yield f"{facts['python']}, vqshm {facts['vqshm']}, {facts['core']} core"
    if facts["versions"]:
        yield "beside " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def titles() -> dict[str, str]:
    """The measures by name."""
    return {name: measure.title for name, measure in MEASURES.items()}
