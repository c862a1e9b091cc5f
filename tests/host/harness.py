"""Actors: functions of test modules, each run in a process of its own that a test can talk to, stop and kill.

    def device(me, region):                       # in a test module; `me` is the process's end of a pipe
        with Device.attach(region) as device:
            me.send("ready")
            device.serve(Echo())

    actor = start(device, region)                 # in the test
    assert actor.hear() == "ready"
    actor.kill()

Processes are forked by a nursery: a second interpreter that has only imported things. So they start in milliseconds,
have one thread, and share nothing with pytest. When pytest ends, however that happens, the nursery kills them all.

Both conftest.py put this module into `sys.modules` as `vqshm_harness`; the nursery does the same.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import importlib.util
import itertools
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from vqshm import Fanin, Fanout, Receiver, Sender
from vqshm.devices.echo import Echo
from vqshm.host import Coordinator, Device, Driver
from vqshm.host.system import names
from vqshm.memory import GuestMemory, atomic
from vqshm.transport import DeviceSpec, QueueSpec

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60  # seconds until something that must happen counts as not happening; no test waits so long
ECHO_ID = 0x7601
for _end in (Device, Driver, Fanin, Fanout, Receiver, Sender):  # a coordinator on a busy machine is slow, not gone
    _end.attach.__func__.__kwdefaults__["timeout"] = PATIENCE
BOTH = pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
_numbers = itertools.count()
_FRAME = 1 << 16
_modules: dict[str, object] = {}


def new_name(prefix: str = "t") -> str:
    """A region name that nobody else has."""
    return f"{prefix}{os.getpid()}-{next(_numbers)}"


# The answer of a coordinator to `attach`.
ATTACHED = {
    "type": "attached",
    "index": 0,
    "region": "cam0",
    "notify": "eventfd",
    "status": 0,
    "features": 0,
    "peer_pid": 0,
    "peer_start_time": 0,
}


def echo_spec(name: str = "echo0", queues: int = 1, size: int = 64, buffers: int = 1 << 18) -> DeviceSpec:
    return DeviceSpec(name, ECHO_ID, (QueueSpec(size, buffers),) * queues)


# -- actors that many tests want ---------------------------------------------------------------------------------------


def coordinate(me, name, devices, notify="eventfd", memory="named"):
    """A coordinator, until the test says anything or ends."""
    with Coordinator(name, devices, notify=notify, memory=memory) as coordinator:
        me.send("ready")
        coordinator.serve(stop=me.fileno())


def echo(me, region, device=None):
    """An echo device, until the region closes."""
    with Device.attach(region, device) as served:
        me.send("ready")
        served.serve(Echo())


def pumping(me, name, device=None):
    """A driver of an echo device that sends for ever, and says after each hundred answers how many came."""
    count = 0
    with Driver.attach(name, device) as driver:
        me.send("up")
        while True:
            word = count.to_bytes(8, "little")
            assert driver.request(word, 8) == word
            count += 1
            if not count % 100:
                me.send(count)


# -- in pytest ---------------------------------------------------------------------------------------------------------


class Nursery:
    """Forks actors on request, reaps them, and tells how they ended."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._ended: dict[int, int] = {}

    def start(self, function, *args) -> Actor:
        ours, theirs = socket.socketpair()
        with theirs:
            order = pickle.dumps(("start", function.__code__.co_filename, function.__name__, args))
            socket.send_fds(self._sock, [order], [theirs.fileno()])
        pid = self._receive("started")
        return Actor(self, pid, Connection(ours.detach()), function.__name__)

    def signal(self, pid: int, number: int) -> None:
        """Sent by the parent, which knows whether the pid is still that child's; nothing if it has ended."""
        self._sock.send(pickle.dumps(("signal", pid, number)))
        self._receive("signalled")

    def exit_code(self, pid: int) -> int:
        """Wait until a process has ended; minus the signal that killed it."""
        while pid not in self._ended:
            self._receive(None)
        return self._ended[pid]

    def _receive(self, wanted: str | None) -> int:
        self._sock.settimeout(PATIENCE)
        while True:
            frame = self._sock.recv(_FRAME)
            assert frame, "the nursery died"
            what, pid, status = pickle.loads(frame)
            if what == "ended":
                self._ended[pid] = os.waitstatus_to_exitcode(status)
            if wanted in {None, what}:
                return pid

    def close(self) -> None:
        self._sock.close()
        self.process.wait(PATIENCE)


class Actor:
    """A process that runs a function of a test module."""

    def __init__(self, nursery: Nursery, pid: int, connection: Connection, name: str) -> None:
        self.pid = pid
        self.name = name
        self._nursery = nursery
        self.connection = connection

    def say(self, message: object) -> None:
        self.connection.send(message)

    def hear(self) -> object:
        """The next thing it sends. Fails the test when it raised instead, or ended."""
        if not self.connection.poll(PATIENCE):
            pytest.fail(f"{self} says nothing; it is in {self.stack()}")
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            pytest.fail(f"{self} ended with {self.end()} instead of saying something")
        if isinstance(message, Raised):
            pytest.fail(f"{self} raised:\n{message.text}")
        return message

    def signal(self, number: signal.Signals) -> None:
        self._nursery.signal(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it has ended."""
        self.signal(signal.SIGKILL)
        self.end()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: self.state() == "T", f"{self} stops")

    def end(self) -> int:
        """Wait until it has ended, by itself or by what was done to it; its exit code, or minus the signal."""
        return self._nursery.exit_code(self.pid)

    def finish(self) -> None:
        """Close the pipe, which is what most actors wait for; it must end well then."""
        self.connection.close()
        assert self.end() == 0, f"{self} failed; see its stderr"

    def state(self) -> str:
        """The kernel's letter for what it does: R, S, T, Z …"""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> Open:
        return Open(self.pid)

    def stack(self) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/wchan").read_text() or self.state()
        return "nothing: it ended"

    def close(self) -> None:
        """Whatever it does, it ends."""
        self.kill()
        self.connection.close()

    def __repr__(self) -> str:
        return f"<Actor {self.name} {self.pid}>"


class Region:
    """A region with its coordinator process."""

    def __init__(self, nursery: Nursery, devices, notify: str, name: str | None, memory: str) -> None:
        self.name = name or new_name()
        self.notify, self.memory = notify, memory
        self._nursery = nursery
        self.actors: list[Actor] = []
        self.coordinator = nursery.start(coordinate, self.name, tuple(devices), notify, memory)
        assert self.coordinator.hear() == "ready"

    def start(self, function, *args) -> Actor:
        """An actor that is told the region's name first, and says something when it is ready."""
        actor = self._nursery.start(function, self.name, *args)
        self.actors.append(actor)
        actor.hear()
        return actor

    def echo(self, device: str | None = None) -> Actor:
        return self.start(echo, device)

    def close(self) -> None:
        """The region closes, its processes end; a coordinator that was killed is cleared away after."""
        self.coordinator.connection.close()
        self.coordinator.signal(signal.SIGCONT)
        self.coordinator.end()
        for actor in self.actors:
            actor.close()
        self.coordinator.close()
        clear_away(self.name)


class Raised:
    """What an actor sends instead of ending well."""

    def __init__(self, text: str) -> None:
        self.text = text


def clear_away(name: str) -> None:
    """Remove what a killed coordinator left; nothing if it closed."""
    with names.naming_lock():
        names.remove(name)


def wait_until(condition, what: str) -> None:
    """For what has no event: other processes' state in /proc."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s until {what}"
        time.sleep(0.001)


class Open(int):
    """How many file descriptors a process has open; where two numbers differ, pytest shows what they are of."""

    def __new__(cls, pid: int | str) -> Self:
        what = []
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own, if it is ours
                what.append(str(path.readlink()))
        self = super().__new__(cls, len(what))
        self.what = sorted(what)
        return self

    def __repr__(self) -> str:
        return f"{int(self)} {self.what}"


def descriptors() -> Open:
    """What this process has open. Garbage is collected first: in the middle of a test that would close some."""
    gc.collect()
    return Open("self")


# -- a stroke at any bytecode ------------------------------------------------------------------------------------------


class Interruption(BaseException):
    """What the handler of a signal raises."""


class Interrupter:
    """Raises at the bytecode number `at`, counted over the code of some files, or does `act`; a context manager."""

    def __init__(self, at: int, files: frozenset[str], act: Callable[[], None] | None = None) -> None:
        self.left = at
        self.act = act
        self.files = files
        self.struck = False
        self.where = ""

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, kind, *_):
        sys.settrace(self._before)
        return kind is Interruption

    @contextlib.contextmanager
    def not_now(self):
        """Leave alone what is done inside."""
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            yield
        finally:
            sys.settrace(trace)

    def _enter_frame(self, frame, _event, _arg):
        if self.struck or frame.f_code.co_filename not in self.files or frame.f_code.co_name == "__del__":
            return None  # what is raised in a finaliser Python keeps to itself
        frame.f_trace = self._step  # first: CPython 3.12 and 3.13 arm a frame that has one
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame, event, _arg):
        if event == "opcode" and not self.struck and not is_out_of_reach(frame):
            self.left -= 1
            if not self.left:
                self.struck = True
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                if self.act is None:
                    raise Interruption
                self.act()
        return self._step


def is_out_of_reach(frame) -> bool:
    """Whether no signal strikes here, and something would break if one did. Elsewhere we strike more than signals do.

    Python looks for signals on entering a function, at a backward jump and after a call. So not where only a local
    variable is still to be returned; nor at the end of an `except`, where it would go on handling that for ever.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]]
    following = dis.opname[code[at + 2]] if at + 2 < len(code) else ""
    if name in {"COPY", "POP_EXCEPT", "RERAISE"}:
        return name != "COPY" or following == "POP_EXCEPT"
    if name.startswith("LOAD_FAST"):
        name = following
    return name in {"RETURN_VALUE", "RETURN_CONST", "YIELD_VALUE", "RETURN_GENERATOR"}


# -- death in front of any store ---------------------------------------------------------------------------------------

LOAD = {2: atomic.load_u16, 4: atomic.load_u32, 8: atomic.load_u64}
STORE = {2: atomic.store_u16, 4: atomic.store_u32, 8: atomic.store_u64}


class Mortality:
    """How many stores this process has left; more than any number until told."""

    left = 1 << 60

    def store(self):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


class Hand:
    """A window over a ring or an in-flight area that counts the stores, and kills the process when they are used up."""

    def __init__(self, window, mortality):
        self.window = window
        self.mortality = mortality

    def load(self, offset, width):
        return LOAD[width](self.window, offset)

    get = load

    def store(self, offset, width, value):
        self.mortality.store()
        STORE[width](self.window, offset, value)

    put = store


def become_mortal():
    """From now on the windows of this process count."""
    whole, mortality = GuestMemory.window, Mortality()

    def window(self, address, count, alignment):
        return atomic.Region(bytearray(), 0, 0, Hand(whole(self, address, count, alignment), mortality))

    GuestMemory.window = window
    return mortality


def heard(actor):
    """Everything that a dead process said."""
    said = []
    try:
        while actor.connection.poll(0):
            said.append(actor.connection.recv())
    except (EOFError, ConnectionResetError):
        pass
    return said


# -- fixtures, for both conftest.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def start(nursery):
    """Start an actor that ends with the test at the latest."""
    actors = []

    def start(function, *args) -> Actor:
        actors.append(nursery.start(function, *args))
        return actors[-1]

    yield start
    for actor in actors:
        actor.close()


@pytest.fixture
def make_region(nursery):
    """Make a region in a coordinator process of its own; by default with one echo device."""
    regions = []

    def make(*devices: DeviceSpec, notify: str = "eventfd", name: str | None = None, memory: str = "named") -> Region:
        regions.append(Region(nursery, devices or (echo_spec(),), notify, name, memory))
        return regions[-1]

    yield make
    for region in reversed(regions):
        region.close()


@pytest.fixture
def region(make_region):
    """A region with one echo device that nobody serves yet."""
    return make_region()


@pytest.fixture
def served(region):
    """A region whose one echo device is served."""
    region.echo()
    return region


# -- in the nursery ----------------------------------------------------------------------------------------------------


def _nurse(control: socket.socket) -> None:
    alarm_out, alarm_in = os.pipe()
    os.set_blocking(alarm_in, False)
    signal.set_wakeup_fd(alarm_in, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: set[int] = set()
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(alarm_out, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if alarm_out in ready:
            os.read(alarm_out, 4096)
            _reap(control, children)
        if control.fileno() in ready:
            order, fds, _, _ = socket.recv_fds(control, _FRAME, 1)
            if not order:
                break
            what, *details = pickle.loads(order)
            if what == "signal":
                pid, number = details
                if pid in children:
                    os.kill(pid, number)
                control.send(pickle.dumps(("signalled", pid, 0)))
                continue
            pid = os.fork()
            if not pid:
                control.close()
                _act(*details, fds[0])
            os.close(fds[0])
            children.add(pid)
            control.send(pickle.dumps(("started", pid, 0)))
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _reap(control: socket.socket, children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        children.discard(pid)
        with contextlib.suppress(OSError):
            control.send(pickle.dumps(("ended", pid, status)))


def _act(path: str, name: str, args: tuple, fd: int) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    me = Connection(fd)
    status = 1
    try:
        getattr(_module(path), name)(me, *args)
        status = 0
    except EOFError:
        status = 0  # it listened until the test closed the pipe
    except BaseException:  # noqa: BLE001 - the test wants to know, whatever it is
        text = traceback.format_exc()
        sys.stderr.write(text)
        with contextlib.suppress(OSError):
            me.send(Raised(text))
    finally:
        sys.stderr.flush()
        os._exit(status)


def _module(path: str) -> object:
    if path == __file__:
        return sys.modules["vqshm_harness"]
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.modules["vqshm_harness"] = sys.modules["__main__"]
    Raised.__module__ = "vqshm_harness"
    _nurse(socket.socket(fileno=int(sys.argv[1])))
