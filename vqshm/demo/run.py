"""Run: starts the three processes of the demo, watches over them, and ends them, whatever happens.

    with Demo(options) as demo:
        outcome = demo.run(tell, look)

One loop waits for everything there is to wait for: what the processes say, their ends (pidfds), and signals. A signal
handler only takes a note; so the end of the demo is never cut short in the middle. Everything that waits has a limit.

The processes cannot outlive the parent either, however it dies: the coordinator's and the driver's standard input ends
then, the coordinator closes the region, and that ends the device.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from vqshm import spec
from vqshm.demo.children import Child, Signals
from vqshm.demo.stream import buffer_bytes
from vqshm.errors import NameInUse
from vqshm.host.coordination.launcher import Launched, launch, same_python
from vqshm.transport import DeviceSpec, QueueSpec, plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from vqshm.notify.notifier import Kind

DEVICE: Final = "zblock0"
PATIENCE: Final = 60  # seconds in which nobody says anything, after which something hangs
GRACE: Final = 1.0  # seconds for the process whose end is reported by another one to be seen ending


class DemoFailed(Exception):
    """It did not work; the message names the process and says why."""


class Interrupted(Exception):
    """A signal asked for the end; `number` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to stream, and how. `file_size` and `block_size` in bytes, `queue_size` in descriptors."""

    file: Path
    file_size: int
    notify: Kind = "eventfd"
    queues: int = 1
    queue_size: int = 16
    block_size: int = 64 << 10
    level: int = 1
    event_idx: bool = True
    indirect: bool = False

    def devices(self) -> list[DeviceSpec]:
        """What the coordinator lays out."""
        queue = QueueSpec(self.queue_size, buffer_bytes(self.block_size, self.queue_size, indirect=self.indirect))
        return [DeviceSpec(DEVICE, spec.VQSHM_ID_ZBLOCK, (queue,) * self.queues)]

    def region_bytes(self) -> int:
        """Shared memory that this takes."""
        return plan(self.devices()).total_bytes


@dataclass(slots=True)
class Outcome:
    """What came of it: what the driver and the device said, and what `look` returned."""

    options: Options
    region: str
    cores: dict[str, str] = field(default_factory=dict)  # of each process, by role
    driver: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    look: Any = None


class Demo:
    """The three processes. A context manager: on leaving it there are none, and nothing is left in /dev/shm."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._signals = Signals()
        self._poller = select.poll()
        self._children: dict[str, Child] = {}
        self._coordinator: Launched | None = None
        self._came_back = 0  # bytes
        self._tell: Callable[[str, dict[str, Any]], None] = _nothing

    def run(self, tell: Callable[[str, dict[str, Any]], None], look: Callable[[str], Any]) -> Outcome:
        """Do it all. `tell(role, event)` hears what happens; `look(region)` sees the region when all is done.

        Raises DemoFailed, Interrupted, and what `launch` raises.
        """
        self._tell = tell
        region = self._start_coordinator()
        options = self._options
        outcome = Outcome(options, region)
        self._start("device", region, level=options.level)
        self._start(
            "driver",
            region,
            file=str(options.file),
            block_size=options.block_size,
            event_idx=options.event_idx,
            indirect=options.indirect,
        )
        driver = self._children["driver"]
        self._watch(lambda: driver.result is not None)
        outcome.look = look(region)
        self._end()
        outcome.driver = {**driver.ready, **(driver.result or {})}
        outcome.device = self._children["device"].result or {}
        outcome.cores = {role: child.ready["core"] for role, child in self._children.items()}
        _check(outcome)
        return outcome

    # -- starting ------------------------------------------------------------------------------------------------------

    def _start_coordinator(self) -> str:
        name = f"demo-{os.getpid()}"
        devices = self._options.devices()
        try:
            coordinator = launch(name, devices, notify=self._options.notify)
        except NameInUse:  # by a process of another container that shares our /dev/shm
            name = f"{name}-{secrets.token_hex(3)}"
            coordinator = launch(name, devices, notify=self._options.notify)
        self._coordinator = coordinator
        self._adopt(Child("coordinator", coordinator.process))
        self._hear("coordinator", {"event": "ready", "core": coordinator.core, "pid": coordinator.pid})
        return name

    def _start(self, role: str, region: str, **options: Any) -> None:
        command, environment = same_python()
        words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [*command, "-m", "vqshm.demo.roles", role, region, json.dumps(options)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
        )
        self._adopt(Child(role, process, words))

    def _adopt(self, child: Child) -> None:
        self._children[child.role] = child
        self._poller.register(child.pidfd, select.POLLIN)
        self._poller.register(child.pipe, select.POLLIN)

    # -- watching ------------------------------------------------------------------------------------------------------

    def _watch(self, done: Callable[[], bool]) -> None:
        """Wait until `done()`. Raises Interrupted, DemoFailed for a process that ends, complains or hangs."""
        silent = 0
        while not done():
            # In slices: while a terminal has suspended us all (Ctrl-Z), the clock goes on, and that is nobody's fault.
            if not self._step(1.0):
                silent += 1
            else:
                silent = 0
            if silent >= PATIENCE:
                raise DemoFailed(self._stalled())
            if self._failed():
                raise DemoFailed(self._blame())

    def _step(self, timeout: float) -> bool:
        """Wait for something to happen and take it in; False if nothing did."""
        ready = {fd for fd, _ in self._poller.poll(timeout * 1000)}
        if self._signals.fileno() in ready and self._signals.caught():
            raise Interrupted(self._signals.number)
        for child in self._children.values():
            if child.pipe in ready:
                events = child.read()
                if events is None:
                    self._poller.unregister(child.pipe)
                for event in events or ():
                    self._hear(child.role, event)
            if child.pidfd in ready:
                self._poller.unregister(child.pidfd)
                child.process.wait()
        return bool(ready)

    def _hear(self, role: str, event: dict[str, Any]) -> None:
        child = self._children[role]
        match event["event"]:
            case "ready":
                child.ready = event
            case "progress":
                self._came_back = event["bytes"]
            case "result":
                child.result = event
                self._came_back = event.get("bytes", self._came_back)
            case "error":
                child.error = event
        self._tell(role, event)

    # -- ending --------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Let them end in order: the driver detaches, the coordinator closes the region, so the device ends."""
        for role in ("driver", "coordinator"):
            child = self._children[role]
            child.dismiss()
            self._watch(lambda child=child: child.process.returncode is not None)  # type: ignore[misc]
            if role == "driver":
                self._children["device"].may_end = True
        self._watch(lambda: all(child.process.returncode is not None for child in self._children.values()))
        device = self._children["device"]
        for event in device.read_rest():
            self._hear("device", event)

    def __enter__(self) -> Self:
        self._signals.listen()
        self._poller.register(self._signals.fileno(), select.POLLIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Driver and device own no names, so they need no time to say good-bye.
            for role in ("driver", "device"):
                if role in self._children:
                    self._children[role].kill()
            if self._coordinator is not None:
                self._coordinator.close()
            for child in self._children.values():
                child.close()
        finally:
            self._signals.close()

    # -- words ---------------------------------------------------------------------------------------------------------

    def _blame(self) -> str:
        """Who is to blame, and how far we were."""
        for _ in range(10):
            if not all(child.second_hand for child in self._failed()):
                break
            # A process heard of the end of another one before we saw that end ourselves.
            self._step(GRACE / 10)
        first = min(self._failed(), key=lambda child: child.severity)
        return f"{first.fate()}; {self._came_back:,} of {self._options.file_size:,} bytes had come back"

    def _failed(self) -> list[Child]:
        return [child for child in self._children.values() if child.failed]

    def _stalled(self) -> str:
        alive = [f"{child.role} {child.process.pid}" for child in self._children.values() if not child.failed]
        return f"nothing has happened for {PATIENCE} seconds; alive are: {', '.join(alive)}"


def _check(outcome: Outcome) -> None:
    """Raise DemoFailed where what they say does not fit together."""
    driver, device = outcome.driver, outcome.device
    if driver["bytes"] != outcome.options.file_size:
        raise DemoFailed(
            f"{outcome.options.file} had {outcome.options.file_size:,} bytes and changed meanwhile: "
            f"{driver['bytes']:,} were read"
        )
    used = sum(counters["used"] for counters in device["counters"])
    if used != driver["chains"] or device["unanswered"]:
        raise DemoFailed(
            f"the driver got {driver['chains']} chains back, the device returned {used}, "
            f"{device['unanswered']} of them unanswered"
        )


def _nothing(_role: str, _event: dict[str, Any]) -> None:
    pass
