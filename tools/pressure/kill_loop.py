"""The kill loop: SIGKILL at random over coordinator, device and driver under traffic, and a history that must hold.

    python tools/pressure/kill_loop.py --kills 1000 --seed 7                   # what a device had, is offered again
    python tools/pressure/kill_loop.py --kills 1000 --seed 7 --restart resume  # its successor goes on with it
    python tools/pressure/kill_loop.py --kills 1000 --lane --restart resume    # the sender and the receiver of a lane

Each role is a process. Whoever is killed is replaced: by a new device, by a driver that offers again what its
predecessor did not get answered, or, for a coordinator, by a whole new region, once the data path was seen to go on
without one. Between kills processes are stopped and continued, which must change nothing. At the end everything is
drained; nothing may be left: no name, no socket, no process, no descriptor. `kill_history` says what must hold, and
`kill_lanes` what a lane's two ends do.

Exits with 1, and with the last records, where it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH leaves it out

from kill_history import (  # noqa: E402
    BEGIN,
    DELIVER,
    HANDLE,
    KILL,
    LOST,
    OFFER,
    REFUSED,
    REPLAY,
    RETURN,
    UP,
    Book,
    Broken,
    History,
    Pen,
)
from kill_lanes import LaneHistory, receive, send  # noqa: E402
from kill_lanes import device as lane_spec  # noqa: E402

from vqshm import Device, DeviceSpec, Driver, QueueSpec, core  # noqa: E402
from vqshm.errors import (  # noqa: E402
    CoordinatorGone,
    DeviceNeedsReset,
    InvalidState,
    OutOfBuffers,
    PeerGone,
    QueueBroken,
    QueueFull,
)
from vqshm.host import Coordinator, sweep  # noqa: E402
from vqshm.host.system import names, shm  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqshm.notify.notifier import Kind
    from vqshm.transport.planning import Restart

PATIENCE: Final = 30.0  # seconds until what must happen counts as not happening
DEVICE_ID: Final = 0x7601
WINDOW: Final = 12  # requests in flight
LONGEST: Final = 3000  # bytes of a request
PAUSE: Final = 0.012  # seconds between two kills, on average


# -- the roles ---------------------------------------------------------------------------------------------------------


def coordinate(stop: int, pen: Pen, name: str, device: DeviceSpec, notify: Kind) -> None:
    """A coordinator, until the loop lets go of the pipe."""
    with Coordinator(name, [device], notify=notify) as coordinator:
        pen.note(UP)
        coordinator.serve(stop=stop)


def serve(_stop: int, pen: Pen, name: str) -> None:
    """A device, until its region closes."""
    with (
        Device.attach(name, timeout=PATIENCE) as device,
        contextlib.suppress(InvalidState),
    ):  # it raises that at the end
        while True:
            device.wait_driver(PATIENCE)
            for chain in device:
                word = chain.reader().read()
                number, attempt = int.from_bytes(word[:8], "little"), int.from_bytes(word[8:10], "little")
                pen.note(REPLAY if chain.replayed else HANDLE, number, attempt)
                device.complete(chain, chain.writer().write(word[:10] + zlib.crc32(word).to_bytes(4, "little")))
                pen.note(RETURN, number, attempt)


class Client:
    """A driver that offers requests, again where they were lost, until the loop lets go of the pipe."""

    def __init__(self, stop: int, pen: Pen, driver: Driver, again: list[tuple[int, int]], number: int) -> None:
        self.stop = stop
        self.pen = pen
        self.driver = driver
        self.again = deque(again)
        self.number = number  # of the next request that is new
        self.random = random.Random(number)
        self.stopping = False

    def run(self) -> None:
        """Go on, whatever dies, and end when all is answered."""
        poller = select.poll()
        poller.register(self.stop, select.POLLHUP)
        while not self.stopping or self.again or self.driver.in_flight:
            self.stopping = bool(poller.poll(0))
            try:
                self.offer()
                for request in self.driver.completed(PATIENCE):
                    with request:
                        self.deliver(request)
            except CoordinatorGone:
                raise
            except (PeerGone, DeviceNeedsReset, QueueBroken):
                self.reset()

    def offer(self) -> None:
        """Fill the window."""
        while self.driver.in_flight < WINDOW and (self.again or not self.stopping):
            number, attempt = self.again[0] if self.again else (self.number, 0)
            word = self.word(number, attempt)
            self.pen.note(OFFER, number, attempt)
            if self.again:
                self.again.popleft()
            else:
                self.number += 1
            cut = self.random.randrange(1, len(word))
            pieces = [word[:cut], word[cut:]] if self.random.random() < 0.5 else [word]
            try:
                self.driver.submit(pieces, [14], tag=(number, attempt))
            except BaseException as error:
                self.pen.note(REFUSED, number, attempt)
                self.again.appendleft((number, attempt + 1))
                if isinstance(error, QueueFull | OutOfBuffers):
                    return
                raise
            if self.random.random() < 0.3:
                self.driver.kick()

    @staticmethod
    def word(number: int, attempt: int) -> bytes:
        """What a request says; its length and its bytes follow from its number."""
        return (
            number.to_bytes(8, "little")
            + attempt.to_bytes(2, "little")
            + bytes([number & 0xFF]) * (number * 7919 % LONGEST)
        )

    def deliver(self, request: Any) -> None:
        """Take an answer, which must be the one to this request."""
        number, attempt = request.tag
        word = self.word(number, attempt)
        if request.output() != word[:10] + zlib.crc32(word).to_bytes(4, "little"):
            raise Broken(f"a wrong answer to {number}.{attempt}: {request.output()!r}")
        self.pen.note(DELIVER, number, attempt)

    def reset(self) -> None:
        """Begin anew; what was lost is offered again before anything else."""
        lost = self.driver.reset(PATIENCE)
        for request in lost:
            self.pen.note(LOST, *request.tag)
            request.release()
        self.pen.note(BEGIN)
        self.again.extendleft((number, attempt + 1) for number, attempt in reversed([each.tag for each in lost]))


def drive(stop: int, pen: Pen, name: str, again: list[tuple[int, int]], number: int) -> None:
    """A driver; without a coordinator it goes on until it needs one."""
    with Driver.attach(name, timeout=PATIENCE) as driver, contextlib.suppress(CoordinatorGone):
        Client(stop, pen, driver, again, number).run()


# -- what is played ----------------------------------------------------------------------------------------------------


class Play:
    """Who serves, who asks, and who judges it."""

    history: Book
    progress: str  # the record that tells of some

    def device(self, restart: Restart) -> DeviceSpec:
        """What the region has."""
        raise NotImplementedError

    def server(self) -> Callable[..., None]:
        """Who serves; called with the region's name."""
        raise NotImplementedError

    def client(self) -> tuple[Any, ...]:
        """Who asks, and with what: a role, called with the region's name and the rest."""
        raise NotImplementedError

    @property
    def number(self) -> int:
        """How many requests or messages there were."""
        raise NotImplementedError


class Requests(Play):
    """A device and a driver."""

    progress = "DELIVER"

    def __init__(self, fd: int, *, resume: bool) -> None:
        self.history: History = History(fd, resume=resume)

    def device(self, restart: Restart) -> DeviceSpec:
        """An echo."""
        return DeviceSpec("echo", DEVICE_ID, (QueueSpec(16, 1 << 17),), restart=restart)

    def server(self) -> Callable[..., None]:
        """A device."""
        return serve

    def client(self) -> tuple[Any, ...]:
        """A driver that knows what its predecessor left."""
        return drive, self.history.outstanding(), self.history.next_number

    @property
    def number(self) -> int:
        """How many requests there were."""
        return self.history.next_number


class Messages(Play):
    """A receiver and a sender."""

    progress = "RECEIVE"

    def __init__(self, fd: int, *, resume: bool) -> None:
        self.history: LaneHistory = LaneHistory(fd, resume=resume)

    def device(self, restart: Restart) -> DeviceSpec:
        """A lane."""
        return lane_spec(restart)

    def server(self) -> Callable[..., None]:
        """A receiver."""
        return receive

    def client(self) -> tuple[Any, ...]:
        """A sender that counts on."""
        return send, self.history.next_number

    @property
    def number(self) -> int:
        """How many messages there were."""
        return self.history.next_number


# -- the loop ----------------------------------------------------------------------------------------------------------


class Process:
    """A role in a process of its own; it ends when its pipe is closed."""

    def __init__(self, role: Callable[..., None], pen: Pen, *args: Any) -> None:
        stop, self.pipe = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _close_all_but(stop, pen.fd)
            _act(role, stop, pen, *args)
        os.close(stop)

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Let it end; its exit code."""
        with contextlib.suppress(OSError):
            os.close(self.pipe)
        watch = os.pidfd_open(self.pid)
        try:
            ended, _, _ = select.select([watch], [], [], PATIENCE)
        finally:
            os.close(watch)
        if not ended:
            raise Broken(f"process {self.pid} does not end")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def descriptors(self) -> int:
        """How many it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


def _close_all_but(*kept: int) -> None:
    """Let go of what the loop has open: its pipes to the other roles, above all."""
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - names only
        if fd > 2 and fd not in kept:  # the standard streams
            with contextlib.suppress(OSError):
                os.close(fd)


def _act(role: Callable[..., None], stop: int, pen: Pen, *args: Any) -> None:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        role(stop, pen, *args)
        status = 0
    except PeerGone:
        status = 3  # the region went away, as it does when its coordinator was killed
    except BaseException:  # noqa: BLE001 - the loop is told by the exit code, the reader by this
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Loop:
    """The three roles, and who kills them."""

    def __init__(self, kind: Callable[..., Play], seed: int, restart: Restart, notify: str) -> None:
        self.random = random.Random(seed)
        self.restart = restart
        self.notify = notify
        self.name = f"kill{os.getpid()}"
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the loop
        self.fd = os.open(f"/proc/self/fd/{self.file.fileno()}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self.play = kind(self.fd, resume=restart == "resume")
        self.history = self.play.history
        self.coordinator, self.server, self.client = self.history.roles
        self.lives = 0
        self.stops = 0
        self.most: Counter[str] = Counter()  # descriptors, by role
        self.begin()

    def pen(self) -> Pen:
        """For a new process."""
        self.lives += 1
        return Pen(self.fd, self.lives)

    def begin(self) -> None:
        """A region, who serves and who asks."""
        self.history.read()
        args = self.name, self.play.device(self.restart), self.notify
        self.roles = {self.coordinator: Process(coordinate, self.pen(), *args)}
        self.wait_for("UP", 1, "from the coordinator")
        self.start(self.server)
        self.start(self.client)

    def start(self, role: str) -> None:
        """A new process for a role."""
        if role == self.server:
            self.roles[role] = Process(self.play.server(), self.pen(), self.name)
        else:
            self.history.read()
            act, *todo = self.play.client()
            self.roles[role] = Process(act, self.pen(), self.name, *todo)

    def kill(self, role: str) -> None:
        """Kill, and replace."""
        if role == self.coordinator:
            self.progress("before its coordinator was killed")
        self.roles[role].kill()
        self.pen().note(KILL, self.history.roles.index(role))
        if role != self.coordinator:
            self.start(role)
            return
        self.progress("without its coordinator")
        for other in (self.client, self.server):
            self.roles[other].kill()
            self.pen().note(KILL, self.history.roles.index(other))
        sweep()  # or somebody else's, who was quicker
        self.left_behind()
        self.begin()

    def progress(self, when: str) -> None:
        """Wait for answers that come from now on."""
        self.history.read()
        self.wait_for(self.play.progress, 2 * WINDOW, when)

    def wait_for(self, kind: str, count: int, when: str) -> None:
        """Wait until so many more records of a kind are there than were read."""
        wanted = self.history.counts[kind] + count
        deadline = time.monotonic() + PATIENCE
        while self.history.counts[kind] < wanted:
            if time.monotonic() > deadline:
                raise Broken(f"nothing comes any more {when}")
            time.sleep(0.0005)  # a file has no event to wait for
            self.history.read()

    def turn(self) -> None:
        """One kill."""
        time.sleep(self.random.expovariate(1 / PAUSE))
        if self.random.random() < 0.15:
            stopped = self.roles[self.random.choice(self.history.roles)]
            stopped.signal(signal.SIGSTOP)
            time.sleep(self.random.random() * PAUSE)
            stopped.signal(signal.SIGCONT)
            self.stops += 1
        self.kill(self.random.choices(self.history.roles, (1, 3, 3))[0])
        if self.random.random() < 0.7:  # else the next strikes in the middle of beginning again
            self.progress("after a kill")
            for role, process in self.roles.items():
                self.most[role] = max(self.most[role], process.descriptors())

    def end(self) -> None:
        """Everything is answered or received, and goes."""
        for role in (self.client, self.coordinator, self.server):
            code = self.roles[role].wait()
            if code:
                raise Broken(f"the {role} ended with {code}")
        self.history.finish()
        self.left_behind()

    def left_behind(self) -> None:
        """Raise Broken if a name is."""
        left = [*shm.DIRECTORY.glob(f"*vqshm.{self.name}*")]
        if names.socket_path(self.name).exists():
            left.append(names.socket_path(self.name))
        if left:
            raise Broken(f"left behind: {', '.join(map(str, left))}")

    def clear(self) -> None:
        """Leave nothing, however it ended."""
        for process in self.roles.values():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                process.kill()
        with names.naming_lock():
            names.remove(self.name)
        os.close(self.fd)
        self.file.close()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--restart", choices=["reset", "resume"], default="reset")
    parser.add_argument("--lane", action="store_true", help="kill the ends of a lane, not a device and its driver")
    parser.add_argument("--notify", choices=["eventfd", "semaphore"], default="eventfd")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    start = time.monotonic()
    loop = Loop(Messages if options.lane else Requests, options.seed, options.restart, options.notify)
    try:
        while loop.history.kills.total() < options.kills:
            loop.turn()
            loop.history.read()
        loop.end()
    except Broken as error:
        print(f"kill loop, seed {options.seed}: {error}", *loop.history.last(40), sep="\n  ", file=sys.stderr)
        return 1
    finally:
        loop.clear()
    if (after := sum(1 for _ in Path("/proc/self/fd").iterdir())) != before:
        print(f"{after} descriptors are open, {before} were before", file=sys.stderr)
        return 1
    figures = {
        "core": core.kind(),
        "restart": options.restart,
        "notify": options.notify,
        "seconds": round(time.monotonic() - start, 1),
        "kills": dict(loop.history.kills),
        "stops": loop.stops,
        "records": dict(loop.history.counts),
        "messages" if options.lane else "requests": loop.play.number,
        "most_descriptors": dict(loop.most),
    }
    print(json.dumps(figures) if options.json else "\n".join(f"{key:17} {value}" for key, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
