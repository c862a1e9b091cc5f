"""Report: what a person sees of the demo, and what a program gets with --json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn

from vqshm.demo.stream import DESCRIPTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from vqshm.demo.run import Options, Outcome

ROLES = ("coordinator", "device", "driver")


def size(count: float) -> str:
    """A number of bytes in a unit that reads well: 64 KiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if count == int(count) else f"{count:,.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds in a unit that reads well: 310 µs."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


class Narrator:
    """Tells what the processes do while they do it. The bar is shown on a terminal, or nowhere."""

    def __init__(self, console: Console, bar_console: Console, options: Options, title: str) -> None:
        self._console = console
        self._options = options
        self._title = title
        self._waiting: dict[str, int] = {}  # pids of the processes that are there, by role
        self._unseen = list(ROLES)
        self._progress = Progress(
            TextColumn("  there and back"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=bar_console,
            disable=not bar_console.is_terminal,
        )

    def begin(self) -> None:
        """Say what is going to happen."""
        options = self._options
        blocks = f"{options.file_size / 1e6:,.1f} MB in blocks of {size(options.block_size)}"
        self._print(f"[bold]{escape(self._title)}[/]: {blocks}\n")

    def __call__(self, role: str, event: dict[str, Any]) -> None:
        """Hear what a process says."""
        if event["event"] == "ready":
            self._waiting[role] = event["pid"]
            while self._unseen and self._unseen[0] in self._waiting:
                self._introduce(self._unseen.pop(0))
        if role == "driver":
            if event["event"] == "ready":
                if not self._progress.disable:
                    self._print("")
                self._task = self._progress.add_task("", total=self._options.file_size)
            elif "bytes" in event:
                self._progress.update(self._task, completed=event["bytes"])

    def _introduce(self, role: str) -> None:
        options = self._options
        does = {
            "coordinator": f"lays out {size(options.region_bytes())}: {_queues(options.queues, options.queue_size)}",
            "device": f"compresses each block, zlib level {options.level}",
            "driver": "sends the blocks, checks what comes back",
        }
        self._print(f"  [cyan]{role:<11}[/]  process {self._waiting[role]:<8}  {does[role]}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _queues(count: int, queue_size: int) -> str:
    return f"{count} queue{'s' if count > 1 else ''} of {queue_size} descriptors"


def facts(outcome: Outcome) -> dict[str, Any]:
    """All figures, as --json gives them: bytes, seconds, counts."""
    options, driver, device = outcome.options, outcome.driver, outcome.device
    kicks = _sums(driver["counters"], "kicks", "kicks_suppressed")
    calls = _sums(device["counters"], "calls", "calls_suppressed")
    rounds = zip(driver["counters"], driver["sizes"], strict=True)
    return {
        "ok": True,
        "file": str(options.file),
        "bytes": driver["bytes"],
        "compressed_bytes": driver["compressed"],
        "ratio": driver["compressed"] / driver["bytes"],
        "sha256": driver["sha256"],
        "seconds": driver["seconds"],
        "mb_per_second": driver["bytes"] / driver["seconds"] / 1e6,
        "chains": driver["chains"],
        "descriptors_per_chain": DESCRIPTORS,
        "most_in_flight": driver["most_in_flight"],
        "overtaken": driver["overtaken"],
        "round_trip_seconds": {"p50": driver["p50"], "p99": driver["p99"]},
        "kicks": {"sent": kicks[0], "suppressed": kicks[1]},
        "calls": {"sent": calls[0], "suppressed": calls[1]},
        "ring_wraps": sum(counters["added"] // size for counters, size in rounds),
        "queues": options.queues,
        "queue_size": options.queue_size,
        "block_size": options.block_size,
        "level": options.level,
        "region_bytes": options.region_bytes(),
        "notify": driver["notify"],
        "features": driver["features"],
        "cores": {role: outcome.cores[role] for role in ROLES},
    }


def _sums(counters: list[dict[str, int]], *names: str) -> list[int]:
    return [sum(queue[name] for queue in counters) for name in names]


def table(outcome: Outcome) -> Iterator[str]:
    """The figures, for a person: lines with rich's markup."""
    for name, value in _rows(facts(outcome)):
        yield f"  [cyan]{name:<11}[/]  {escape(value)}"


def _rows(f: dict[str, Any]) -> list[tuple[str, str]]:
    cores = set(f["cores"].values())
    core = f"{cores.pop()} in all three processes" if len(cores) == 1 else ", ".join(map(" ".join, f["cores"].items()))
    trip = f["round_trip_seconds"]
    rows = [
        ("bytes", f"{f['bytes']:,} there, {f['compressed_bytes']:,} back ({f['ratio']:.1%})"),
        (
            "chains",
            f"{f['chains']:,} of {f['descriptors_per_chain']} descriptors, up to {f['most_in_flight']} in flight",
        ),
        ("throughput", f"{f['mb_per_second']:.1f} MB/s; {f['seconds']:.2f} s in all"),
        ("round trip", f"p50 {duration(trip['p50'])}, p99 {duration(trip['p99'])}; waiting in the queue included"),
        ("kicks", f"{f['kicks']['sent']:,} sent, {f['kicks']['suppressed']:,} suppressed; driver to device"),
        ("calls", f"{f['calls']['sent']:,} sent, {f['calls']['suppressed']:,} suppressed; device to driver"),
        ("ring wraps", f"{f['ring_wraps']:,}"),
        ("core", core),
        ("notifier", f["notify"]),
        ("features", ", ".join(name.removeprefix("VIRTIO_F_") for name in f["features"])),
        ("SHA-256", f["sha256"]),
    ]
    if f["overtaken"]:
        rows.insert(2, ("order", f"{f['overtaken']:,} blocks were overtaken by others, and put back in order"))
    return rows
