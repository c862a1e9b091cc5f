"""Liveness: who a process is, and whether it still runs.

A pid alone proves nothing: it is used again. With its start time (clock ticks since boot, field 22 of /proc/PID/stat)
it names one process for good. A zombie has ended: it will never touch the memory again; unless only its first thread is
one, and others run on. A stopped process has not ended.

Death is an event, not a silence: a pidfd becomes readable when its process ends, so nobody needs heartbeats.
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vqshm.closing import owned

if TYPE_CHECKING:
    from vqshm.closing import Owned

_STATE, _THREADS, _START_TIME = 0, 17, 19  # positions behind the command's name in /proc/PID/stat
_ENDED = {"Z", "X", "x"}


class ProcessId(NamedTuple):
    """A process, told from every other that had or will have its pid."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that runs under `pid` now; None if none does, or only a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None  # any other error, as no descriptor left, says nothing about that process
        fields = stat[stat.rindex(")") + 2 :].split()
        ended = fields[_STATE] in _ENDED and int(fields[_THREADS]) <= 1
        return None if ended else cls(pid, int(fields[_START_TIME]))

    @classmethod
    def own(cls) -> ProcessId:
        """This process."""
        me = cls.of(os.getpid())
        assert me is not None  # noqa: S101 - it runs this line
        return me

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.pid > 0 and ProcessId.of(self.pid) == self


class Watch:
    """A pidfd: `fileno()` becomes readable when the process ends. Close it after use."""

    def __init__(self, process: ProcessId) -> None:
        self.process = process
        self._pidfd: Owned | None = None
        if process.pid > 0:
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = owned(os.pidfd_open, process.pid)
        try:
            ended = not process.alive  # the pid was used again before it was opened, or a zombie holds it
        except BaseException:
            self.close()
            raise
        if ended:
            self.close()

    def fileno(self) -> int:
        """The pidfd, or -1 if the process had ended before it could be watched."""
        return -1 if self._pidfd is None or self._pidfd.closed else self._pidfd.fileno()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        fd = self.fileno()
        if fd < 0:
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Close the pidfd; the process counts as ended from then on. May be called twice."""
        if self._pidfd is not None:
            self._pidfd.close()
