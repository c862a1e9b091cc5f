"""Bed: what one who waits for a single bell sleeps on, so that the first thing it does when it wakes is to look.

An epoll, whose keeper has put the bell into it, and whatever else may end the sleep: that is asked afterwards, by
whoever owns the epoll. The bell stays rung behind a sleep that was ended by work; `make` silences it, before the next
time one asks to be woken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqshm.notify import kernel

if TYPE_CHECKING:
    import select

    from vqshm.memory.atomic import Region
    from vqshm.notify.eventfd import EventFd

_WORK, _RUNG = kernel.WORK, kernel.RUNG


class Bed:
    """An epoll that hears `bell`, and others."""

    __slots__ = ("_bell", "_epoll", "_rung", "_seconds")

    def __init__(self, epoll: select.epoll, bell: EventFd) -> None:
        self._epoll = epoll
        self._bell = bell
        self._rung = False  # and not silenced yet
        self._seconds: float | None = None

    def make(self, seconds: float | None) -> None:
        """Be ready for a sleep of at most `seconds`: to be called before one asks to be woken."""
        self._seconds = seconds
        if self._rung:
            self._bell.clear()
            self._rung = False

    def doze(self, region: Region, offset: int, old: int) -> bool:
        """Sleep until something is heard; whether the u16 at `offset` is not `old` then. Raises as `kernel.doze`."""
        found = kernel.doze(self._epoll, self._bell.fileno(), region, offset, old, self._seconds)
        if found & _RUNG:
            self._rung = True
        if found & _WORK:
            return True
        self.make(None)
        return False
