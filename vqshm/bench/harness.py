"""Harness: the processes of one sample. They are fresh, they obey the parent step by step, and they surely end.

A role is a generator that runs in a child: the first step opens what it needs, each further step measures and yields
what came out. Between the steps the child waits for the parent, who may ask the first and the last process of a sample
for the cache-line probe instead.

Every wait of the parent has the one deadline of its sample. A child that fails, dies or does not answer makes the
sample a `SampleFailed` that says so; the others are killed. A child whose parent dies is killed by the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, reduction
from typing import TYPE_CHECKING, Any, Final, Self

from vqshm.bench import loops
from vqshm.memory.atomic import Region

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from types import TracebackType

    from vqshm.bench.peers.base import Peer
    from vqshm.bench.roles.base import Role

START: Final = 30.0  # seconds for children to start and to find each other, on a busy machine
SLACK: Final = 20.0  # seconds that a sample may take longer than it should
LAST_WORDS: Final = 0.5  # seconds for the others to say what they know when one has failed
LEAVE: Final = 1.0  # seconds to leave before one is killed

_BLOCK: Final = 500  # hand-overs of the probe that are timed together
_BLOCKS: Final = 9
_PATIENCE: Final = 100_000  # looks between two looks at the clock
_NAP: Final = 0.0005  # seconds
_PROBE_LIMIT: Final = 0.5  # seconds
_PR_SET_PDEATHSIG: Final = 1
_SPAWN: Final = multiprocessing.get_context("spawn")


class SampleFailed(Exception):
    """No figure came out of a sample; the message says why."""


@dataclass
class Job:
    """What one child does: `roles.<role>(peers, index, plan)`."""

    role: str
    peers: tuple[Peer, ...]
    index: int
    plan: dict[str, Any]


class Stage:
    """The children of one sample. As a context manager it starts them and ends them."""

    def __init__(self, jobs: Sequence[Job], seconds: float) -> None:
        self.jobs = jobs
        self._allowed = seconds + SLACK
        self._deadline = time.monotonic() + START
        self._children: list[tuple[SpawnProcess, Any]] = []
        self._fd = os.memfd_create("vqshm-bench", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, mmap.PAGESIZE)
        self._word = mmap.mmap(self._fd, mmap.PAGESIZE)

    def __enter__(self) -> Self:
        try:
            for place, job in enumerate(self.jobs):
                self._start(job, 0 if place == 0 else 1)
            self.results(*range(len(self.jobs)))
        except BaseException:
            self.close()
            raise
        self._deadline = time.monotonic() + self._allowed
        return self

    def _start(self, job: Job, side: int) -> None:
        ours, theirs = _SPAWN.Pipe()
        word = _Fd(self._fd)
        process = _SPAWN.Process(target=_child, args=(job, side, word, theirs, os.getpid()), daemon=True)
        before = {name: os.environ.get(name) for peer in job.peers for name in peer.environment}
        # A child inherits the mask: deaf to Ctrl-C from its first instruction on. The parent hears it a bit later.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for peer in job.peers:
                os.environ.update(peer.environment)
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._children.append((process, ours))

    def step(self, *who: int) -> None:
        """Let these children take their next step."""
        for place in who:
            self._tell(place, "step")

    def results(self, *who: int) -> list[dict[str, Any]]:
        """What their steps yielded, in the order asked for. Raises SampleFailed."""
        found: dict[int, dict[str, Any]] = {}
        failures: list[str] = []
        pending = set(who)
        deadline = self._deadline
        while pending:
            handles = {id(handle): place for place in pending for handle in self._handles(place)}
            ready = connection.wait(
                [handle for place in pending for handle in self._handles(place)], max(0.0, deadline - time.monotonic())
            )
            if not ready:
                break
            for place in sorted({handles[id(handle)] for handle in ready}):
                pending.remove(place)
                kind, what = self._hear(place)
                if kind == "done":
                    found[place] = what
                else:
                    failures.append(what)
                    deadline = min(deadline, time.monotonic() + LAST_WORDS)
        if failures:
            raise SampleFailed("; ".join(dict.fromkeys(failures)))
        if pending:
            silent = ", ".join(dict.fromkeys(self.jobs[place].role for place in sorted(pending)))
            raise SampleFailed(f"no answer in time from {silent}")
        return [found[place] for place in who]

    def run(self) -> list[dict[str, Any]]:
        """One step of all children at once."""
        everybody = range(len(self.jobs))
        self.step(*everybody)
        return self.results(*everybody)

    def probe(self) -> float | None:
        """Nanoseconds for a cache line to go from the first child to the last one and back; None if they never met."""
        self._word[:8] = bytes(8)
        last = len(self.jobs) - 1
        for place in (0, last):
            self._tell(place, "probe")
        there, _ = self.results(0, last)
        nanoseconds: float | None = there["nanoseconds"]
        return nanoseconds

    def cpu(self, *who: int) -> float:
        """CPU seconds that these children (none named: all) have used so far, in all their threads."""
        return sum(cpu_seconds(self._children[place][0].pid or 0) for place in who or range(len(self.jobs)))

    def _handles(self, place: int) -> list[Any]:
        process, pipe = self._children[place]
        return [pipe, process.sentinel]

    def _tell(self, place: int, word: str) -> None:
        with contextlib.suppress(OSError):  # it has died, which `results` will find out
            self._children[place][1].send(word)

    def _hear(self, place: int) -> tuple[str, Any]:
        process, pipe = self._children[place]
        try:
            if pipe.poll():
                kind, what = pipe.recv()
                if kind == "failed":
                    pipe.close()
                return kind, what
        except (EOFError, OSError):
            pass
        process.join(LEAVE)
        pipe.close()
        code = process.exitcode
        how = "does not answer" if code is None else f"ended with status {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return "failed", f"{self.jobs[place].role}: the process {how}"

    def close(self) -> None:
        """End the children: those that wait leave, the others are killed."""
        try:
            deadline = time.monotonic() + LEAVE
            for _, pipe in self._children:
                with contextlib.suppress(OSError):
                    pipe.send("leave")
            for process, _ in self._children:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process, pipe in self._children:
                process.kill()
                process.join()
                process.close()
                pipe.close()
            self._children.clear()
            self._word.close()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process, _ in self._children:
                process.kill()  # somebody failed, or Ctrl-C: no time for manners
        self.close()


class _Fd:
    """A file descriptor that goes to a child while that is started."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (reduction.DupFd(self._fd),)


def _detached(inherited: Any) -> int:
    fd: int = inherited.detach()
    return fd


# -- in the child ------------------------------------------------------------------------------------------------------


def _child(job: Job, side: int, word: int, pipe: Any, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        _obey(job, side, word, pipe)
    except (EOFError, BrokenPipeError):
        pass
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent tells it
        with contextlib.suppress(OSError):
            pipe.send(("failed", f"{job.role}: {type(error).__name__}: {error}"[:500]))
    os._exit(0)  # no other package's farewell may hang


def _obey(job: Job, side: int, word: int, pipe: Any) -> None:
    from vqshm.bench import roles  # noqa: PLC0415 - it is the child's

    role: Role = getattr(roles, job.role)(job.peers, job.index, job.plan)
    region = Region(mmap.mmap(word, mmap.PAGESIZE), 0, 64)
    pipe.send(("done", next(role)))
    while (order := pipe.recv()) != "leave":
        pipe.send(("done", {"nanoseconds": probe(region, side)} if order == "probe" else next(role)))
    role.close()
    for peer in job.peers:
        if not peer.in_use:
            with contextlib.suppress(Exception):
                peer.close()


def probe(word: Region, side: int) -> float | None:
    """One side of the cache-line probe, 0 or 1: the median nanoseconds there and back; None if the other never came."""
    end = time.monotonic() + _PROBE_LIMIT
    done = 0
    times = []
    for block in range(_BLOCKS + 1):
        begin = time.perf_counter_ns()
        while done < (block + 1) * _BLOCK:
            done += loops.bounce(word, 2 * done + side, (block + 1) * _BLOCK - done, _PATIENCE)
            if done < (block + 1) * _BLOCK:
                if time.monotonic() > end:
                    return None
                time.sleep(_NAP)  # both may be on one processor: who wakes up is put where there is room
        if block:  # in the first one they found each other
            times.append((time.perf_counter_ns() - begin) / _BLOCK)
    return statistics.median(times)


# -- the machine -------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """CPU seconds of all threads of a process; 0 if it has gone."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - numbers
            with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:  # noqa: PTH123 - likewise
                total += int(file.read().split()[0])
    except (OSError, IndexError):
        return total / 1e9
    return total / 1e9


def busy_seconds() -> float:
    """CPU seconds that the whole machine has been busy since it started, all processors together."""
    with open("/proc/stat", encoding="ascii") as file:  # noqa: PTH123 - one line is read
        user, nice, system, _idle, _waiting, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
