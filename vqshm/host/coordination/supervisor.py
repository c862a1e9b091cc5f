"""Supervisor: starts device processes, and starts them again when they die, until that is in vain.

    workers = [Worker("blk0", [sys.executable, "-m", "workers.blk_device", "--region", "walk", "disk.img"])]
    with Supervisor(workers) as supervisor:
        supervisor.run(stop=fd)                 # until all have ended, or `stop` is readable

    running ── status 0 ──▶ ended
            ── died ──▶ pausing ── pause over ──▶ running …
                        └─ the last of too many deaths ──▶ given up

Rules
- Who ends with status 0 has done its work. Any other end, by a signal or a status, is a death.
- The pause before a restart doubles with every death within the last `within` seconds, from the first of `backoff` to
  the second one.
- More than `max_restarts` deaths within `within` seconds: given up. The worker's region is told, so that a driver that
  waits for a successor (restart "resume") waits no longer, and hears PeerGone.

No thread and no signal handler: a pidfd for each process and one poll. If the supervisor is killed, its processes live
on until their region closes; their drivers do not notice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from vqshm.closing import Closing
from vqshm.errors import RuleError, VqshmError
from vqshm.host.connection import connect, rebuilt
from vqshm.host.endpoint import CONTROL_TIMEOUT
from vqshm.host.system import names
from vqshm.notify import Deadline
from vqshm.transport import clip

if TYPE_CHECKING:
    from vqshm.host.handle import Handle

log = logging.getLogger("vqshm.supervisor")

CLOSE_TIMEOUT: Final = 5.0  # seconds before a process that does not end by SIGTERM is killed


@dataclass(frozen=True, slots=True)
class Supervise:
    """How often, and how soon: see the rules above. Seconds. Raises RuleError for what makes no sense."""

    max_restarts: int = 5
    within: float = 60.0
    backoff: tuple[float, float] = (0.1, 5.0)

    def __post_init__(self) -> None:
        first, last = self.backoff
        if self.max_restarts < 0 or not self.within > 0 or not 0 <= first <= last:
            raise RuleError(f"{self} makes no sense: restarts and pauses are not negative, and pauses grow")


@dataclass(frozen=True, slots=True)
class Worker:
    """A program to keep running. `device`: which device it serves, to be told when the program is given up."""

    name: str
    command: Sequence[str]
    supervise: Supervise = Supervise()
    device: Handle | None = None


def give_up(device: Handle, reason: str, timeout: float = CONTROL_TIMEOUT) -> None:
    """Tell a region that no new process will come for a device: a driver that waits for one hears PeerGone.

    Raises NotFound, UntrustedPeer, CoordinatorGone, PeerGone, DeadlineExceeded.
    """
    deadline = Deadline(timeout)
    fd, header, plan = names.open_plan(device.region, deadline=deadline)
    fd.close()
    name = device.device or plan.devices[0].name
    channel = connect(
        names.socket_path(device.region), device.region, max_fds=0, coordinator=header.pid, deadline=deadline
    )
    try:
        channel.send({"type": "give_up", "device": name, "reason": clip(reason)}, (), deadline)
        answer, _ = channel.receive(deadline)
    finally:
        channel.close()
    if answer["type"] == "error":
        raise rebuilt(answer)


class What(StrEnum):
    """What happened to a worker, and the state in which it is then."""

    STARTED = "started"
    DIED = "died"
    ENDED = "ended"
    GAVE_UP = "gave up"


class Happening(NamedTuple):
    """Something that `step` saw. `status`: of the process that ended, minus the signal; `pause`: until the restart."""

    worker: str
    what: What
    pid: int
    status: int = 0
    pause: float = 0.0


@dataclass(slots=True)
class _Charge:
    """A worker, and what became of it."""

    worker: Worker
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    state: What = What.DIED  # to be started at `due`
    due: float = 0.0  # of time.monotonic()
    pid: int = 0
    deaths: deque[float] = field(default_factory=deque)


class Supervisor(Closing):
    """Keeps `workers` running, from `start` (or entering its `with` block) on. A context manager."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._charges = {worker.name: _Charge(worker) for worker in workers}
        self._owner = os.getpid()
        self._poller = select.poll()
        self._by_pidfd: dict[int, _Charge] = {}

    @property
    def states(self) -> dict[str, What]:
        """What happened to each worker last."""
        return {name: charge.state for name, charge in self._charges.items()}

    def pid(self, worker: str) -> int:
        """Of a worker's process; 0 while it has none."""
        charge = self._charges[worker]
        return charge.pid if charge.state is What.STARTED else 0

    @property
    def busy(self) -> bool:
        """Whether a process runs, or will."""
        return any(charge.state in {What.STARTED, What.DIED} for charge in self._charges.values())

    def start(self) -> None:
        """Start them all. Raises OSError for a command that cannot be run; those before it run then."""
        for charge in self._charges.values():
            if charge.process is None and charge.state is What.DIED:
                self._start(charge)

    def step(self, timeout: float | None = 0.0) -> list[Happening]:
        """Wait until something happens, at most `timeout` seconds (None: for ever), and see to it."""
        deadline = Deadline(timeout)
        seen: list[Happening] = []
        while self.busy and not seen:  # where nothing can happen any more, nothing is waited for
            seen = self._look(deadline.remaining())
            if deadline.expired:
                break
        return seen

    def run(self, stop: int = -1) -> dict[str, What]:
        """Go on until nothing is left to run, or descriptor `stop` becomes readable; the `states`."""
        if stop >= 0:
            self._poller.register(stop, select.POLLIN)
        try:
            while self.busy:
                self._look(None)
                if stop >= 0 and select.select([stop], [], [], 0)[0]:
                    break
        finally:
            if stop >= 0:
                self._poller.unregister(stop)
        return self.states

    # -- inside --------------------------------------------------------------------------------------------------------

    def _start(self, charge: _Charge) -> Happening:
        charge.process = subprocess.Popen(charge.worker.command, stdin=subprocess.DEVNULL)  # noqa: S603 - as declared
        charge.pid = charge.process.pid
        charge.pidfd = os.pidfd_open(charge.pid)  # our child, and not waited for: the pid is still its own
        charge.state = What.STARTED
        self._by_pidfd[charge.pidfd] = charge
        self._poller.register(charge.pidfd, select.POLLIN)
        log.info("%s: started as process %d", charge.worker.name, charge.pid)
        return Happening(charge.worker.name, What.STARTED, charge.pid)

    def _look(self, timeout: float | None) -> list[Happening]:
        """One poll, and what follows from it."""
        pauses = [charge.due for charge in self._charges.values() if charge.state is What.DIED]
        if pauses:
            left = max(0.0, min(pauses) - time.monotonic())
            timeout = left if timeout is None else min(left, timeout)
        ready = [fd for fd, _ in self._poller.poll(None if timeout is None else timeout * 1000)]
        seen = [self._ended(self._by_pidfd[fd]) for fd in ready if fd in self._by_pidfd]
        now = time.monotonic()
        due = [charge for charge in self._charges.values() if charge.state is What.DIED and charge.due <= now]
        return seen + [self._restart(charge) for charge in due]

    def _restart(self, charge: _Charge) -> Happening:
        try:
            return self._start(charge)
        except OSError as error:  # no memory, no descriptor, the program is just being replaced: as good as a death
            log.warning("%s cannot be started: %s", charge.worker.name, error)
            return self._died(charge, 127)

    def _ended(self, charge: _Charge) -> Happening:
        assert charge.process is not None  # noqa: S101 - its pidfd was watched
        status = charge.process.wait()
        self._forget(charge)
        if status == 0:
            charge.state = What.ENDED
            log.info("%s: process %d has ended", charge.worker.name, charge.pid)
            return Happening(charge.worker.name, What.ENDED, charge.pid)
        return self._died(charge, status)

    def _died(self, charge: _Charge, status: int) -> Happening:
        rules, now = charge.worker.supervise, time.monotonic()
        charge.deaths.append(now)
        while charge.deaths[0] < now - rules.within:
            charge.deaths.popleft()
        deaths = len(charge.deaths)
        if deaths > rules.max_restarts:
            self._give_up(
                charge, f"{charge.worker.name} died {deaths} times in {rules.within:g} s, with {status} at last"
            )
            return Happening(charge.worker.name, What.GAVE_UP, charge.pid, status)
        first, last = rules.backoff
        pause = min(last, first * 2 ** (deaths - 1))
        charge.state, charge.due = What.DIED, now + pause
        log.warning("%s: process %d died with %d; again in %g s", charge.worker.name, charge.pid, status, pause)
        return Happening(charge.worker.name, What.DIED, charge.pid, status, pause)

    def _give_up(self, charge: _Charge, reason: str) -> None:
        charge.state = What.GAVE_UP
        log.error("%s; given up", reason)
        if charge.worker.device is not None:
            with contextlib.suppress(VqshmError):  # the region may be gone by now
                give_up(charge.worker.device, reason)

    def _forget(self, charge: _Charge) -> None:
        self._poller.unregister(charge.pidfd)
        del self._by_pidfd[charge.pidfd]
        os.close(charge.pidfd)
        charge.process, charge.pidfd = None, -1

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all processes: SIGTERM, and SIGKILL for those that take too long. May be called twice."""
        if os.getpid() != self._owner:
            return  # a forked child: they are its parent's
        running = [charge for charge in self._charges.values() if charge.process is not None]
        for charge in running:
            charge.process.terminate()  # type: ignore[union-attr]  # those that run
        deadline = Deadline(CLOSE_TIMEOUT)
        for charge in running:
            assert charge.process is not None  # noqa: S101 - likewise
            try:
                charge.process.wait(deadline.remaining())
            except subprocess.TimeoutExpired:
                charge.process.kill()
                charge.process.wait()
            self._forget(charge)
        for charge in self._charges.values():
            if charge.state in {What.STARTED, What.DIED}:
                charge.state = What.ENDED

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __repr__(self) -> str:
        words = ", ".join(f"{name} {state}" for name, state in self.states.items())
        return f"<Supervisor: {words or 'nothing'}>"
