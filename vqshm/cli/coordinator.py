"""`vqshm coordinator`: makes a region, says what is in it, serves it, and removes it in the end.

Signals. SIGINT, SIGTERM and SIGHUP are only noted, and wake the poll loop through a pipe; so none of them can hit the
coordinator in the middle of making or removing a region. Whoever insists (three of them) gets an exception after all,
and `vqshm clean` removes what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import click
from rich.text import Text

from vqshm import spec
from vqshm.cli.app import EXIT_INTERRUPTED
from vqshm.cli.console import BAD, DIM, GOOD, STRONG, Size, console, grid, plain
from vqshm.host import Coordinator, Hints, MemoryKind
from vqshm.host.coordination.ground import MEMORY_KINDS
from vqshm.host.system.names import socket_path
from vqshm.host.system.shm import DIRECTORY, object_name
from vqshm.ring.tries import MOST
from vqshm.transport import DeviceSpec, QueueSpec
from vqshm.transport.planning import RESTARTS, Restart
from vqshm.transport.status import State
from vqshm.view.machine import in_bytes
from vqshm.view.snapshot import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from rich.console import Console

    from vqshm.transport import Plan
    from vqshm.view.snapshot import DeviceSnapshot

    WantedType = click.ParamType["Wanted"]
else:
    WantedType = click.ParamType  # before click 8.2 it took no type

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INSIST: Final = 3  # signals after which it is no longer a request


class Kind(NamedTuple):
    """A device type that people start by name, and what its worker programs want to know."""

    device_id: int
    device_words: str = ""
    driver_words: str = ""


KINDS: Final = {
    "zblock": Kind(spec.VQSHM_ID_ZBLOCK, driver_words="FILE"),
    "echo": Kind(spec.VQSHM_ID_ECHO, driver_words="hello"),
    "checksum": Kind(spec.VQSHM_ID_CHECKSUM, driver_words="FILE"),
    "blk": Kind(spec.VIRTIO_ID_BLOCK, device_words="disk.img"),
}


class Wanted(NamedTuple):
    """A device as asked for."""

    kind: str
    name: str


class DeviceOption(WantedType):
    """KIND or KIND:NAME."""

    name = "kind[:name]"

    def convert(self, value: str | Wanted, param: click.Parameter | None, ctx: click.Context | None) -> Wanted:
        """The kind and the name, which may be empty."""
        if isinstance(value, Wanted):
            return value
        kind, _, name = value.partition(":")
        if kind not in KINDS:
            self.fail(f"there is no device {kind!r}, only: {', '.join(KINDS)}", param, ctx)
        return Wanted(kind, name)


@click.command(short_help="Make a region and serve it until Ctrl-C.")
@click.argument("name", default="demo")
@click.option(
    "--device",
    "devices",
    type=DeviceOption(),
    multiple=True,
    help=f"A device in it: {', '.join(KINDS)}, as often as you like.  [default: zblock:zblock0]",
)
@click.option("--queues", type=click.IntRange(1, 256), default=1, show_default=True, help="Queues of each device.")
@click.option("--queue-size", type=int, default=256, show_default=True, help="Descriptors of each, a power of two.")
@click.option(
    "--buffer-bytes", type=Size(), default="4M", show_default=True, help="Buffers of each queue: 64K, 4M, 1G."
)
@click.option(
    "--notify",
    type=click.Choice(["eventfd", "semaphore"]),
    default="eventfd",
    show_default=True,
    help="How the two sides wake each other.",
)
@click.option(
    "--memory",
    type=click.Choice(MEMORY_KINDS),
    default="named",
    show_default=True,
    help="A name in /dev/shm, or sealed memory without one, which nobody can cut.",
)
@click.option("--huge-pages", is_flag=True, help="Back the region with huge pages, if the machine has them.")
@click.option("--lock", is_flag=True, help="Never swap the region out, if the limits allow that.")
@click.option("--numa-node", type=click.IntRange(0, 1023), help="Take the memory from this NUMA node first.")
@click.option(
    "--restart",
    type=click.Choice(RESTARTS),
    default="reset",
    show_default=True,
    help="When a device process dies: its driver resets, a new process resumes, or what was in flight fails.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1, MOST),
    help="With --restart resume: how often a chain is handed out, if not until it is done.",
)
@click.pass_context
def coordinator(
    ctx: click.Context,
    *,
    name: str,
    devices: Sequence[Wanted],
    queues: int,
    queue_size: int,
    buffer_bytes: int,
    notify: str,
    memory: MemoryKind,
    huge_pages: bool,
    lock: bool,
    numa_node: int | None,
    restart: Restart,
    max_attempts: int | None,
) -> None:
    """Make the region NAME (default: demo), and serve it until Ctrl-C or SIGTERM; then remove it.

    Driver and device processes attach to it by name; it takes no part in what they exchange.
    """
    screen = console()
    queue = QueueSpec(queue_size, buffer_bytes)
    wanted = _named(devices or [Wanted("zblock", "")])
    hints = Hints(huge_pages, lock, numa_node)
    if (memory, notify) == ("memfd", "semaphore"):
        raise click.UsageError("a region without a name has no semaphores: --memory memfd needs --notify eventfd")
    if max_attempts is not None and restart != "resume":
        raise click.UsageError("nothing is attempted twice but with --restart resume: --max-attempts needs it")
    specs = [
        DeviceSpec(
            device.name,
            KINDS[device.kind].device_id,
            (queue,) * queues,
            restart=restart,
            max_attempts=max_attempts,
        )
        for device in wanted
    ]
    with noted_signals() as (noted, stop):
        with _Watched(name, specs, notify=notify, memory=memory, hints=hints) as region:  # type: ignore[arg-type]  # click.Choice said so
            _print_plan(screen, region.plan, name, memory, notify)
            _print_next(screen, name, wanted)
            region.journal = _Journal(Observer.of(region), lambda text: screen.print(text, soft_wrap=True))
            region.serve(stop)
        screen.print(f"region {name} removed")
        if signal.SIGINT in noted:
            ctx.exit(EXIT_INTERRUPTED)


def _named(wanted: Sequence[Wanted]) -> list[Wanted]:
    """The devices, each with a name: KIND0, KIND1, … where none was given."""
    taken = {device.name for device in wanted}
    named = []
    for kind, name in wanted:
        free = (f"{kind}{i}" for i in range(len(wanted) + len(taken)))
        chosen = name or next(candidate for candidate in free if candidate not in taken)
        taken.add(chosen)
        named.append(Wanted(kind, chosen))
    return named


@contextlib.contextmanager
def noted_signals() -> Iterator[tuple[list[int], int]]:
    """The signals that came so far, and a descriptor that becomes readable with the first."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        if len(noted) >= INSIST:
            raise KeyboardInterrupt

    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, note) for number in ENDING}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield noted, reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


# -- what is printed ---------------------------------------------------------------------------------------------------


def _print_plan(screen: Console, plan: Plan, name: str, memory: MemoryKind, notify: str) -> None:
    where = f"{DIRECTORY}{object_name(name)}" if memory == "named" else "sealed memory (memfd)"
    head = Text("region ").append(name, STRONG).append(f"  {in_bytes(plan.total_bytes)}  {where}")
    screen.print(head.append(f"  {notify}", DIM), soft_wrap=True)
    screen.print(Text(f"socket {socket_path(name)}", DIM), soft_wrap=True)
    screen.print()
    columns = ("device", "id", "queue", "size", "rings at", "buffers at", "of")
    table = grid(*columns, right=("id", "queue", "size", "rings at", "buffers at", "of"))
    for device in plan.devices:
        for queue in device.queues:
            first = not queue.number
            table.add_row(
                Text(device.name if first else "", STRONG),
                f"{device.device_id:#x}" if first else "",
                str(queue.number),
                str(queue.size),
                f"{queue.layout.desc_table:#x}",
                f"{queue.buffers.address:#x}",
                in_bytes(queue.buffers.length),
            )
    screen.print(table)


def _print_next(screen: Console, region: str, wanted: Sequence[Wanted]) -> None:
    screen.print()
    screen.print(Text("In other terminals, in the folder that holds workers/:", DIM))
    for kind, name in wanted:
        words = KINDS[kind]
        where = f" --region {region}" if region != "demo" else ""
        where += f" --device {name}" if len(wanted) > 1 else ""
        for side, extra in (("device", words.device_words), ("driver", words.driver_words)):
            screen.print(f"  python -m workers.{kind}_{side}{' ' + extra if extra else ''}{where}", soft_wrap=True)
    screen.print(Text("and to watch it:", DIM))
    screen.print(f"  vqshm stat {region} --watch", soft_wrap=True)
    screen.print()
    screen.print(Text("Serving. Ctrl-C ends it and removes the region.", DIM))


class _Watched(Coordinator):
    """A coordinator whose journal is kept after every step."""

    journal: _Journal | None = None

    def step(self, timeout: float | None = 0.0) -> list[int]:
        ready = super().step(timeout)
        if self.journal is not None:
            self.journal.look()
        return ready


class _Journal:
    """Says who comes and who goes, by comparing what the cells say with what they said before."""

    def __init__(self, observer: Observer, say: Callable[[Text], None]) -> None:
        self._observer = observer
        self._say = say
        self._before = observer.devices()

    def look(self) -> None:
        """Say what is new."""
        now = self._observer.devices()
        for before, after in zip(self._before, now, strict=True):
            for text in _changes(before, after):
                self._say(Text(time.strftime("%H:%M:%S "), DIM).append(f"{after.name} ", STRONG).append_text(text))
        self._before = now


def _changes(before: DeviceSnapshot, after: DeviceSnapshot) -> Iterator[Text]:
    for role in ("device", "driver"):
        old, new = getattr(before, role), getattr(after, role)
        if (old and (old.pid, old.start_time)) == (new and (new.pid, new.start_time)):
            continue
        if old is not None:
            yield Text(f"{role} left", BAD).append(f": process {old.pid} {old.command}".rstrip(), DIM)
        if new is not None:
            yield Text(f"{role} attached", GOOD).append(f": process {new.pid} {new.command}".rstrip(), DIM)
    if before.state != after.state:
        if after.state == State.LIVE:
            yield Text("live", GOOD).append(f": {', '.join(map(plain, after.accepted))}", DIM)
        elif after.state in {State.NEEDS_RESET, State.FAILED}:
            yield Text(f"{after.state}", BAD).append(f": {after.status_bits}", DIM)
        elif after.state == State.RESET:
            yield Text("reset")
