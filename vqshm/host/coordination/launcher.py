"""Launch: a coordinator in a process of its own, for as long as a `with` block lasts.

    with launch("hello", [DeviceSpec("echo0", VQSHM_ID_ECHO)]):
        ...                                       # whoever attaches to "hello" now, finds it

The process is told what to make by a line of JSON on its standard input and answers by a line on its standard output.
It ends when its input ends: when the block is left, or when whoever opened it dies, even by SIGKILL. What a terminal
sends to all its processes (Ctrl-C, hang-up) it ignores, so that its opener can end it last.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, get_args

from vqshm import core, errors
from vqshm.closing import Closing
from vqshm.errors import DeadlineExceeded, NotFound, PeerGone, VqshmError
from vqshm.host.coordination.coordinator import Coordinator
from vqshm.host.coordination.ground import MEMORY_KINDS, MemoryKind
from vqshm.host.system import names
from vqshm.host.system.pages import NO_HINTS, Hints
from vqshm.notify import Deadline
from vqshm.notify.notifier import Kind
from vqshm.transport import DeviceSpec, QueueSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

START_TIMEOUT: Final = 30.0  # seconds; an interpreter that starts on a busy machine
CLOSE_TIMEOUT: Final = 5.0  # seconds before a coordinator that does not end is killed

_CODE: Final = "from vqshm.host.coordination.launcher import main; main()"


def launch(
    name: str,
    devices: Sequence[DeviceSpec],
    *,
    notify: Kind = "eventfd",
    memory: MemoryKind = "named",
    hints: Hints = NO_HINTS,
    timeout: float | None = START_TIMEOUT,
) -> Launched:
    """Start a coordinator process; return when its region can be attached to. Arguments as of `Coordinator`.

    Raises what `Coordinator` raises, PeerGone if the process ended before that, DeadlineExceeded.
    """
    for what, value, kinds in (("notify", notify, get_args(Kind)), ("memory", memory, MEMORY_KINDS)):
        if value not in kinds:
            raise ValueError(f"{what} is one of {', '.join(kinds)}, not {value!r}")
    command, environment = same_python()
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [*command, "-c", _CODE, str(name)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    launched = Launched(name, process)
    try:
        order = {
            "devices": [asdict(device) for device in devices],
            "options": {"notify": notify, "memory": memory},
            "hints": asdict(hints),
        }
        launched._start(json.dumps(order).encode() + b"\n", Deadline(timeout))  # noqa: SLF001 - a part of `launch`
    except BaseException:
        launched.close()
        raise
    return launched


class Launched(Closing):
    """A coordinator process. A context manager; `core` tells which core runs in it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self.core = ""
        self._owner = os.getpid()

    @property
    def pid(self) -> int:
        """Of the coordinator."""
        return self.process.pid

    def close(self) -> None:
        """End the coordinator, which removes the region; remove it in its stead if it cannot. May be called twice.

        If it was killed and others work on in the region, its name stays, and `vqshm ls` shows who they are.
        """
        if os.getpid() != self._owner:
            return  # a forked child: the coordinator is its parent's
        self._close_pipes()
        try:
            self.process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(CLOSE_TIMEOUT)
        if self.process.returncode < 0:
            remove_leftovers(self.name)

    def _start(self, order: bytes, deadline: Deadline) -> None:
        assert self.process.stdin is not None  # noqa: S101 - it was asked for
        with contextlib.suppress(BrokenPipeError):  # then its answer, or that there is none, tells why
            self.process.stdin.write(order)
            self.process.stdin.flush()
        answer = json.loads(self._read_line(deadline))
        if "error" in answer:
            raise _rebuilt(answer)
        self.core = answer["core"]

    def _read_line(self, deadline: Deadline) -> bytes:
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        fd = self.process.stdout.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            left = deadline.remaining()
            if not poller.poll(None if left is None else left * 1000):
                raise DeadlineExceeded(f"the coordinator process {self.pid} of {self.name!r} was not ready in time")
            piece = os.read(fd, 4096)
            if not piece:
                status = self.process.wait()
                raise PeerGone(
                    f"the coordinator process {self.pid} of {self.name!r} ended at its start, with status {status}",
                    pid=self.pid,
                    role="coordinator",
                )
            line += piece
        return line

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __repr__(self) -> str:
        state = "running" if self.process.poll() is None else "ended"
        return f"<Launched {self.name!r}: coordinator process {self.pid}, {state}>"


def same_python() -> tuple[list[str], dict[str, str]]:
    """Command and environment that start this Python with the import path of this process.

    Without it a child would find the modules of its working directory first, and other ones than its parent.
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    # The parent has said already which core runs.
    quiet = "ignore:vqshm runs its interpreted core"
    environment["PYTHONWARNINGS"] = ",".join(filter(None, [environment.get("PYTHONWARNINGS"), quiet]))
    return [sys.executable, "-P"], environment


def remove_leftovers(name: str) -> None:
    """Remove a region whose coordinator was killed; do nothing if there is none, a living one, or a living peer."""
    with names.naming_lock(), contextlib.suppress(NotFound):
        if names.look_at(name).abandoned:
            names.remove(name)


# -- in the process ----------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the coordinator that the first line of standard input orders, until that input ends."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    try:
        order = json.loads(sys.stdin.buffer.readline())
        devices = [_device(**fields) for fields in order["devices"]]
        with Coordinator(sys.argv[1], devices, hints=Hints(**order["hints"]), **order["options"]) as coordinator:
            _say(pid=os.getpid(), core=core.kind())
            coordinator.serve(stop=sys.stdin.fileno())
    except VqshmError as error:
        _say(error=type(error).__name__, message=str(error))
        sys.exit(1)
    sys.exit(0)


def _device(*, queues: list[dict[str, int]], **fields: Any) -> DeviceSpec:
    return DeviceSpec(queues=tuple(QueueSpec(**queue) for queue in queues), **fields)


def _say(**facts: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _rebuilt(answer: dict[str, str]) -> VqshmError:
    """The error that the process reported."""
    kind: Any = getattr(errors, answer["error"], VqshmError)
    error: VqshmError = kind(answer["message"])
    return error
