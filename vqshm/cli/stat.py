"""`vqshm stat`: looks into a running region, once or again and again, without disturbing it."""

from __future__ import annotations

import itertools
import json
import time
from typing import TYPE_CHECKING, Final

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from vqshm.cli.app import Failure
from vqshm.cli.console import BAD, DIM, GOOD, STRONG, WARNING, console, grid, number, plain, process
from vqshm.errors import InvalidState, NotFound
from vqshm.host.system.names import existing
from vqshm.transport.status import State
from vqshm.view.machine import in_bytes
from vqshm.view.picture import render
from vqshm.view.snapshot import RegionSnapshot, take

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console, RenderableType
    from rich.table import Table

    from vqshm.view.snapshot import DeviceSnapshot, QueueSnapshot

MANY: Final = 2  # queues; of more than that only the asked one is drawn

# heading (the driver's word above the device's) → counter of the driver, counter of the device
COLUMNS: Final = {
    "added\ntaken": ("added", "taken"),
    "reaped\nused": ("reaped", "used"),
    "kicks\ncalls": ("kicks", "calls"),
    "spared": ("kicks_suppressed", "calls_suppressed"),
    "bytes out": ("bytes_out", "bytes_out"),
    "bytes in": ("bytes_in", "bytes_in"),
    "waits": ("waits", "waits"),
}


@click.command(short_help="Look into a running region: who, in which state, how much.")
@click.argument("name", required=False)
@click.option("--watch/--once", default=False, help="Again and again, until Ctrl-C; once is the default.")
@click.option(
    "--interval", type=click.FloatRange(0.05, 3600), default=0.5, show_default=True, help="Seconds, for --watch."
)
@click.option("--queue", type=click.IntRange(0), help="Draw this queue of the region only (they count through).")
@click.option("--json", "as_json", is_flag=True, help="Print a map; with --watch one to a line.")
def stat(*, name: str | None, watch: bool, interval: float, queue: int | None, as_json: bool) -> None:
    """Look into the region NAME (default: the only one there is).

    Shows who is attached, the device status, the agreed features, the counters of both sides and the rings. The region
    is mapped read-only: nobody in it notices. A busy side writes its counters every 64 chains.
    """
    name = name or _only_one()
    first = take(name)
    if queue is not None and queue >= len(first.queues):
        raise Failure(f"region {name!r} has queues 0 to {len(first.queues) - 1}, not {queue}")
    if queue is None and len(first.queues) == 1:
        queue = 0
    screen = console()
    if not watch:
        if as_json:
            click.echo(json.dumps(_as_map(first, queue), indent=2))
        else:
            screen.print(_show(first, None, queue, screen))
        return
    if as_json or not screen.is_terminal:
        _follow(screen, first, queue, interval, as_json=as_json)
    else:
        _watch(screen, first, queue, interval)


def _only_one() -> str:
    names = existing()
    if len(names) == 1:
        return names[0]
    if names:
        raise Failure(f"which region? These exist: {', '.join(names)}")
    raise Failure("there is no region; start one with `vqshm coordinator NAME`")


def _watch(screen: Console, first: RegionSnapshot, queue: int | None, interval: float) -> None:
    before, now = None, first
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        live.update(_fitting(now, before, queue, screen), refresh=True)
        for later in _later(first.name, interval):
            before, now = now, later
            live.update(_fitting(now, before, queue, screen), refresh=True)
    screen.print(_show(now, None, queue, screen))
    screen.print(f"region {first.name} is gone")


def _later(name: str, interval: float) -> Iterator[RegionSnapshot]:
    """A snapshot every `interval` seconds, until the region is gone."""
    while True:
        time.sleep(interval)
        try:
            yield take(name)
        except InvalidState:
            continue  # a new one of this name is just being made
        except NotFound:
            return


def _fitting(now: RegionSnapshot, before: RegionSnapshot | None, queue: int | None, screen: Console) -> RenderableType:
    """As much as the screen holds: whole pictures, else strips, else none."""
    hint = Text("Ctrl-C ends the watching, nothing else", DIM)
    for compact in (False, True):
        body = Group(_show(now, before, queue, screen, compact=compact), hint)
        if len(screen.render_lines(body)) <= screen.height:
            return body
    return Group(_show(now, before, queue, screen, pictures=False), hint)


def _follow(screen: Console, first: RegionSnapshot, queue: int | None, interval: float, *, as_json: bool) -> None:
    """Print one snapshot after the other, for a pipe."""
    before = None
    for now in itertools.chain([first], _later(first.name, interval)):
        if as_json:
            click.echo(json.dumps(_as_map(now, queue)))
        else:
            screen.print(_show(now, before, queue, screen, compact=True), Text())
        before = now


def _as_map(snapshot: RegionSnapshot, queue: int | None) -> dict[str, object]:
    whole = snapshot.as_map()
    if queue is not None:
        for device in whole["devices"]:
            device["queues"] = [entry for entry in device["queues"] if entry["index"] == queue]
        whole["devices"] = [device for device in whole["devices"] if device["queues"]]
    return whole


# -- what is shown -----------------------------------------------------------------------------------------------------


def _show(
    snapshot: RegionSnapshot,
    before: RegionSnapshot | None,
    queue: int | None,
    screen: Console,
    *,
    compact: bool = False,
    pictures: bool = True,
) -> RenderableType:
    """The region, or one queue of it; with an earlier snapshot also how fast the counters grow."""
    same = before is not None and before.made_by == snapshot.made_by
    seconds = snapshot.taken_at - before.taken_at if before is not None and same else 0.0
    earlier = {entry.index: entry for entry in before.queues} if before is not None and seconds else {}
    pictures = pictures and (queue is not None or len(snapshot.queues) <= MANY)
    parts: list[RenderableType] = [_headline(snapshot)]
    for device in snapshot.devices:
        shown = [entry for entry in device.queues if queue in {None, entry.index}]
        if queue is not None and not shown:
            continue
        parts += [Text(), *_device(device, brief=compact and queue is not None)]
        for entry in shown:
            parts += [Text(), _queue_line(entry), _counters(entry, earlier.get(entry.index), seconds)]
            if pictures:
                picture = render(entry.ring, event_idx=entry.event_idx, width=min(screen.width, 100), compact=compact)
                parts += [Text(), _coloured(picture)]
    if not pictures:
        parts += [Text(), Text("--queue N draws the rings of one queue", DIM)]
    return Group(*parts)


def _headline(snapshot: RegionSnapshot) -> Text:
    text = Text("region ").append(snapshot.name, STRONG)
    text.append(f"  {in_bytes(snapshot.size)}  {snapshot.notify}  coordinator: ")
    return text.append_text(process(snapshot.coordinator, command=False))


def _device(device: DeviceSnapshot, *, brief: bool) -> list[RenderableType]:
    head = Text(device.name, STRONG).append(f"  {device.kind} ({device.device_id:#x})  ")
    head.append(device.state, _STATE_STYLES.get(device.state, WARNING))
    if device.status:
        head.append(f"  {device.status_bits}", DIM)
    if brief:
        return [head]
    table = grid("", "")
    table.add_row("  driver", process(device.driver))
    table.add_row("  device", _device_process(device))
    if device.offered or device.accepted:
        table.add_row("  features", _features(device))
    return [head, table]


def _device_process(device: DeviceSnapshot) -> Text:
    """Who serves it; where sessions outlive it, whether one waits, and how often that has happened."""
    text = Text("nobody, and a driver waits for one", BAD) if device.orphaned else process(device.device)
    text.append(f"  resumed {device.resumed} times" if device.resumed else "", DIM)
    undone = sum(queue.device["undone"] for queue in device.queues)
    return text.append(f"  gave up {undone}, each after {device.max_attempts} attempts" if undone else "", WARNING)


_STATE_STYLES: Final = {
    State.LIVE: GOOD,
    State.RESET: DIM,
    State.NEEDS_RESET: BAD,
    State.FAILED: BAD,
    "impossible": BAD,
}


def _features(device: DeviceSnapshot) -> Text:
    text = Text(", ".join(plain(name) for name in device.accepted) or "none agreed yet")
    spare = [plain(name) for name in device.offered if name not in device.accepted]
    return text.append(f"; offered, too: {', '.join(spare)}" if spare else "", DIM)


def _queue_line(queue: QueueSnapshot) -> Text:
    text = Text(f"queue {queue.index}", STRONG).append(f"  {queue.size} descriptors", "not bold")
    buffers = f"  buffers {in_bytes(queue.buffer_bytes)} at {queue.addresses['buffers']:#x}"
    return text.append(f"  rings at {queue.addresses['descriptor table']:#x}{buffers}", DIM)


def _counters(now: QueueSnapshot, before: QueueSnapshot | None, seconds: float) -> Table:
    table = grid("", *COLUMNS, right=tuple(COLUMNS))
    for side, row in (("driver", 0), ("device", 1)):
        counts: Mapping[str, int] = getattr(now, side)
        table.add_row(f"  {side}", *(_amount(title, counts[names[row]]) for title, names in COLUMNS.items()))
        if before is not None:
            old: Mapping[str, int] = getattr(before, side)
            rates = {title: max(0, counts[names[row]] - old[names[row]]) / seconds for title, names in COLUMNS.items()}
            table.add_row("  per s", *(_amount(title, rate) for title, rate in rates.items()), style=DIM)
    return table


def _amount(title: str, count: float) -> str:
    return in_bytes(int(count)) if title.startswith("bytes") else number(count)


def _coloured(picture: str) -> Text:
    text = Text(picture)
    text.highlight_regex(r"(?m)^.*!.*$|!", BAD)
    text.highlight_regex(r"●|[░▒▓█]+", GOOD)
    text.highlight_regex(r"[aAuU]+▸", "bold cyan")
    text.highlight_regex(r"(?m)^ +[aAuU](?: +[aAuU])*$", "bold cyan")
    text.highlight_regex(r"[╭╮╰╯│├┤─]+", DIM)
    return text
