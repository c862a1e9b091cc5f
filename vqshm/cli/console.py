"""Console: what all commands print through, and how they write numbers, sizes and processes."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vqshm.view.snapshot import Process

    SizeType = click.ParamType[int]
else:
    SizeType = click.ParamType  # before click 8.2 it took no type

PIPED_WIDTH: Final = 120  # columns, where there is no terminal and COLUMNS does not say otherwise
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE: Final = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)

BAD, GOOD, DIM, STRONG, WARNING = "bold red", "green", "dim", "bold", "yellow"


class Size(SizeType):
    """A number of bytes: 4096, 64K, 4M, 1GiB; the letters count in 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or a usage error."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if not match or not int(match[1]):
            self.fail(f"{value!r} is no size: a number of bytes above 0, or 64K, 4M, 1G", param, ctx)
        return int(match[1]) << _UNITS[match[2].upper()]


def console() -> Console:
    """Where a command prints: colours on a terminal only, and nothing in the text is taken for markup."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a locale without boxes and arrows gets question marks
    screen = Console(markup=False, highlight=False, emoji=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = PIPED_WIDTH
    return screen


def grid(*headings: str, right: tuple[str, ...] = (), folding: str = "") -> Table:
    """A table without lines. The columns named in `right` hold numbers; `folding` gives way on a narrow screen."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=DIM, show_header=any(headings))
    for place, heading in enumerate(headings):
        last = not any(headings) and place == len(headings) - 1
        folds = heading == folding if folding else last
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=not folds, overflow="fold")
    return table


def number(count: float) -> str:
    """At most seven signs: 70,001, then 12.3M."""
    if count < 1_000_000:
        return f"{count:,.0f}"
    size, units = float(count), iter("kMGTPE")
    unit = ""
    while size >= 1000:
        size, unit = size / 1000, next(units)
    return f"{size:.3g}{unit}"


def duration(seconds: float) -> str:
    """In the largest unit that fits: "4 s", "12 min", "3 h", "2 d"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def process(who: Process | None, *, command: bool = True) -> Text:
    """Who holds a role: "process 4711 python, for 12 s", "process 4711, which has ended", "nobody"."""
    if who is None:
        return Text("nobody", DIM)
    if not who.alive:
        return Text(f"process {who.pid}, which has ended", BAD)
    what = f" {who.command}" if command and who.command else ""
    return Text(f"process {who.pid}", GOOD).append(f"{what}, for {duration(who.age or 0.0)}", "default")


def plain(feature: str) -> str:
    """A feature's name without the prefix that all of them have."""
    return feature.removeprefix("VIRTIO_F_")
