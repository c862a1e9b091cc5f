"""Command: `vqshm demo [FILE]`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from vqshm.demo.report import Narrator, facts, table
from vqshm.demo.run import Demo, DemoFailed, Interrupted, Options, Outcome
from vqshm.demo.source import UnfitFile, check_file, default_file
from vqshm.demo.stream import DESCRIPTORS, MAX_BLOCK
from vqshm.errors import VqshmError
from vqshm.host import open_plan
from vqshm.host.system.pages import map_object
from vqshm.memory import GuestMemory
from vqshm.ring.layout import is_queue_size
from vqshm.spec import MAX_QUEUE_SIZE
from vqshm.transport import GUEST_BASE
from vqshm.view.picture import draw

if TYPE_CHECKING:
    from vqshm.notify.notifier import Kind

    IntType = click.ParamType[int]
else:
    IntType = click.ParamType  # before click 8.2 it took no type

MAX_QUEUES: Final = 16
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20}


class Failure(click.ClickException):
    """An error that ends the command: one line on standard error, exit status 1."""

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"error: {self.message}", file=file, err=file is None)


class BlockSize(IntType):
    """A number of bytes: 4096, 64K, 1M."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Calls `fail` for anything else."""
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        digits = text.rstrip("KM")
        unit = text[len(digits) :]
        if not (digits.isascii() and digits.isdecimal()) or unit not in _UNITS:
            self.fail(f"{value!r} is not a size such as 4096, 64K or 1M.", param, ctx)
        count = int(digits) * _UNITS[unit]
        if not 1 <= count <= MAX_BLOCK:
            self.fail(f"{value!r} is not in 1 to {MAX_BLOCK >> 20}M.", param, ctx)
        return count


class QueueSize(IntType):
    """A number of descriptors that a queue may have."""

    name = "descriptors"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Calls `fail` for anything else."""
        text = str(value)
        if not text.isascii() or not text.isdecimal() or not is_queue_size(int(text)) or int(text) < DESCRIPTORS:
            self.fail(
                f"{value!r} is not a power of two in {DESCRIPTORS} to {MAX_QUEUE_SIZE}: "
                f"a chain has {DESCRIPTORS} descriptors.",
                param,
                ctx,
            )
        return int(text)


@click.command("demo", context_settings={"show_default": True})
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--notify", type=click.Choice(["eventfd", "semaphore"]), default="eventfd", help="What wakes the sides.")
@click.option("--queues", type=click.IntRange(1, MAX_QUEUES), default=1, help="Queues of the device.")
@click.option("--queue-size", type=QueueSize(), default=16, help="Descriptors of a queue, a power of two.")
@click.option("--block-size", type=BlockSize(), default="64K", help="Bytes of the file in one chain: 4096, 64K, 1M.")
@click.option("--level", type=click.IntRange(1, 9), default=1, help="zlib level, 1 fast … 9 small.")
@click.option("--event-idx/--no-event-idx", default=True, help="Accept VIRTIO_F_EVENT_IDX: fewer notifications.")
@click.option("--indirect/--no-indirect", default=False, help="Accept VIRTIO_F_INDIRECT_DESC: one slot for a chain.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object, and nothing else.")
@click.pass_context
def demo(
    context: click.Context,
    *,
    file: Path | None,
    notify: Kind,
    queues: int,
    queue_size: int,
    block_size: int,
    level: int,
    event_idx: bool,
    indirect: bool,
    as_json: bool,
) -> None:
    """Stream FILE through a virtqueue between three processes, and prove that every byte arrived.

    A coordinator lays out shared memory, a device compresses block after block, a driver sends them and checks what
    comes back. FILE defaults to this Python's own library.
    """
    try:
        path = file or default_file()
        options = Options(
            file=path,
            file_size=check_file(path),
            notify=notify,
            queues=queues,
            queue_size=queue_size,
            block_size=block_size,
            level=level,
            event_idx=event_idx,
            indirect=indirect,
        )
        if as_json:
            click.echo(json.dumps(facts(_run_silently(options))))
        else:
            title = str(path) if file else f"{path.name}, this Python's own"
            _show(options, title)
    except Interrupted as error:
        click.echo(f"\nvqshm demo: {error}; its processes are gone, nothing is left", err=True)
        context.exit(128 + error.number)
    except BrokenPipeError:
        raise  # whoever reads our output has left: click ends quietly
    except (UnfitFile, DemoFailed, VqshmError, OSError) as error:
        if as_json:
            click.echo(json.dumps({"ok": False, "error": str(error)}))
        raise Failure(str(error)) from error


def _run_silently(options: Options) -> Outcome:
    with Demo(options) as demo:
        return demo.run(lambda _role, _event: None, lambda _region: None)


def _show(options: Options, title: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without boxes and arrows gets question marks
    console = Console()
    narrator = Narrator(console, console if console.is_terminal else Console(stderr=True), options, title)
    narrator.begin()
    with Demo(options) as demo, narrator:
        outcome = demo.run(narrator, lambda region: _pictures(region, console.width, event_idx=options.event_idx))
    console.print()
    for line in table(outcome):
        console.print(line, highlight=False)
    for number, picture in enumerate(outcome.look):
        console.print(f"\n[bold]Queue {number} in shared memory, when all was done[/]\n", highlight=False)
        console.print(picture, markup=False, highlight=False)
    console.print("\n[bold green]Every byte arrived, in order.[/] SHA-256 is the same there and back.", highlight=False)


def _pictures(region: str, width: int, *, event_idx: bool) -> list[str]:
    """The queues drawn, the first one in full."""
    fd, _, found = open_plan(region)
    with fd:
        mapping = map_object(fd.fileno(), found.total_bytes, writable=False)
    memory = GuestMemory([(GUEST_BASE, memoryview(mapping)[found.manifest_bytes :])])
    return [
        draw(memory, queue.layout, event_idx=event_idx, width=width, compact=queue.index > 0) for queue in found.queues
    ]
