"""Spin: look at a word of the other side again and again, for a while, before one goes to sleep.

A blocked wake-up across processors costs tens of microseconds, a look costs nanoseconds; but looking burns a processor.
So a side looks for about as long as a wake-up would cost, and for less and less while that does not pay (`Pace`).

Two bodies with one contract: this one is interpreted; the compiled one (spin.pyx, spin.h) lets other threads run while
it looks, and pauses the processor between two looks.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from vqshm.memory import atomic

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region

SPIN_NANOSECONDS: Final = 50_000  # about what a blocked wake-up costs
LEAST_SHARE: Final = 16  # a pace that does not pay falls to this part of the full one
_COARSE: Final = 6  # CLOCK_MONOTONIC_COARSE


def until_changed(region: Region, offset: int, old: int, nanoseconds: int) -> bool:
    """Look until the u16 at `offset` is not `old`: True; False after `nanoseconds`. Raises GuestMemory."""
    end = time.monotonic_ns() + nanoseconds
    while atomic.load_u16(region, offset) == old:
        if time.monotonic_ns() >= end:
            return False
    return True


def now() -> int:
    """`time.monotonic_ns()`, for those who are compiled."""
    return time.monotonic_ns()


def tick() -> int:
    """The same, when the kernel's timer ticked last: some milliseconds coarse, and a few nanoseconds to read."""
    return time.clock_gettime_ns(_COARSE)


class Pace:
    """How long one waiting side looks before it sleeps: `limit` nanoseconds at first, less while it was in vain.

    With a single processor it does not look at all, since the other side cannot run meanwhile. But where there are more
    processes than processors, it may be our processor that the other side waits for. So a look ends by letting others
    run, once: if that helps, the other side goes on until it has plenty for us, and need not wake us for each message;
    and the next look is shorter.
    """

    __slots__ = ("budget", "limit")

    def __init__(self, limit: int | None = None) -> None:
        """`limit`: nanoseconds; None: 50,000, or none on a single processor. Raises ValueError if negative."""
        if limit is None:
            limit = SPIN_NANOSECONDS if len(os.sched_getaffinity(0)) > 1 else 0
        if limit < 0:
            raise ValueError(f"cannot look for {limit} nanoseconds")
        self.limit = limit
        self.budget = limit  # nanoseconds of the next look

    def look(self, region: Region, offset: int, old: int) -> bool:
        """As `until_changed`, for as long as it is worth. Where it was in vain, call `slept` after the sleep."""
        if until_changed(region, offset, old, self.budget):
            return True
        os.sched_yield()
        if not until_changed(region, offset, old, 0):
            return False
        self._shorten()
        return True

    def slept(self, nanoseconds: int) -> None:
        """Learn from a sleep: a short one should have been looked through, a long one need not be looked into."""
        if nanoseconds < 2 * self.limit:
            self.budget = self.limit
        else:
            self._shorten()

    def _shorten(self) -> None:
        self.budget = max(self.budget // 2, self.limit // LEAST_SHARE)
