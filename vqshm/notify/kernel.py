"""Kernel: the system calls of ringing a doorbell, and of sleeping until one rings.

Who has slept for a while finds its caches cold: each line of Python that runs between being woken and the first look at
the ring costs microseconds then. So `doze` looks at the ring itself, and so does nobody before it.

Two bodies with one contract: this one is interpreted; in the compiled one (kernel.pyx, kernel.h) the calls are C. Both
let other threads run during a call, which may block: a peer can make a doorbell do so (see `eventfd`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vqshm.memory import atomic
from vqshm.notify.wait import LONGEST_SLEEP

if TYPE_CHECKING:
    import select

    from vqshm.memory.atomic import Region

WORK, RUNG = 1, 2  # what `doze` found


def ring(fd: int) -> None:
    """Add one to an eventfd. Does nothing if its counter is full: then a wake-up is pending as it is."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return


def hush(fd: int) -> None:
    """Set an eventfd to zero."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return


def doze(epoll: select.epoll, bell: int, region: Region, offset: int, old: int, seconds: float | None) -> int:
    """Sleep until something in `epoll` is readable, at most `seconds` (None: for ever); then look at the ring at once.

    WORK if the u16 at `offset` is not `old` any more, RUNG if the eventfd `bell` was readable; both, or 0. Nothing is
    read. A signal's Python handler runs, and the sleep goes on unless it raises.
    """
    news = epoll.poll(None if seconds is None else min(seconds, LONGEST_SLEEP))
    found = WORK if atomic.load_u16(region, offset) != old else 0
    return found | RUNG if any(fd == bell for fd, _ in news) else found
