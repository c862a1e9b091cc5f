"""Ends: what a sender and a receiver have in common: life, event loops, threads, forks."""

from __future__ import annotations

import contextlib
import os
import select
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from vqshm.errors import InvalidState
from vqshm.notify.wait import GLANCE_SECONDS

if TYPE_CHECKING:
    from types import TracebackType

    from vqshm.host.endpoint import Endpoint
    from vqshm.host.handle import Handle
    from vqshm.host.liveness import ProcessId
    from vqshm.notify import Notifier


_LONGEST_SLEEP: Final = 3600.0  # seconds; epoll counts milliseconds in an int


class End:
    """One end of a lane."""

    def __init__(self, endpoint: Endpoint, bell: Notifier) -> None:
        self._endpoint = endpoint
        self._pid = os.getpid()
        self._bell = bell  # that wakes this end
        self._epoll: select.epoll | None = None  # everything that wakes this end; None with semaphores
        self._polled = False  # `fileno` gave that out: then the bell rings whenever there is work
        self._next_glance = 0.0  # of time.monotonic()
        self._watched = -1  # our own descriptor of the peer's process, in the epoll
        number = bell.fileno()
        if number is not None:
            self._epoll = select.epoll()
            self._epoll.register(number, select.EPOLLIN)
            self._epoll.register(endpoint.fileno(), select.EPOLLIN)
            self._watch_peer()
        _all.add(self)

    @property
    def peer(self) -> ProcessId | None:
        """The process on the other side; None if there is none."""
        return self._endpoint.peer

    @property
    def peer_gone(self) -> bool:
        """Whether the process on the other side has ended."""
        return self._endpoint.peer_gone

    @property
    def region(self) -> str:
        """The channel's name."""
        return self._endpoint.region

    @property
    def lane(self) -> str:
        """The lane's name in it."""
        return self._endpoint.plan.name

    @property
    def handle(self) -> Handle:
        """What to send to another process, which attaches by it."""
        return self._endpoint.handle

    @property
    def notify(self) -> Any:
        """How the two sides wake each other: "eventfd" or "semaphore"."""
        return self._endpoint.notify

    def fileno(self) -> int:
        """A descriptor for event loops: readable when this end may have work, or news of the other side.

        Level-triggered, as long as this end is asked (with `timeout=0`) whenever it is readable, until it has nothing
        more. Raises InvalidState for a channel of semaphores, which have nothing to watch.
        """
        self._endpoint._check_usable()  # noqa: SLF001 - an end is half an endpoint
        if self._epoll is None:
            raise InvalidState(f"{self.region!r} notifies by semaphores, which an event loop cannot watch")
        if not self._polled:
            self._polled = True
            self._bell.signal()  # so that the first look finds out how things stand
        return self._epoll.fileno()

    def _park(self, timeout: float | None) -> None:
        """Sleep until the bell rings or there is news, at most `timeout` seconds; news are taken in."""
        endpoint = self._endpoint
        if self._epoll is None:
            endpoint.park([self._bell], timeout)
            return
        heard = self._epoll.poll(_LONGEST_SLEEP if timeout is None else min(timeout, _LONGEST_SLEEP))
        bell = self._bell.fileno()
        if any(fd == bell for fd, _ in heard):
            self._bell.clear()
        if any(fd != bell for fd, _ in heard) or not heard:
            endpoint.hear()
            if endpoint.coordinator_gone:
                self._forget(endpoint.fileno())  # it would be heard for ever

    def _may_glance(self) -> bool:
        """Whether one who does not wait shall look for news of the other side all the same: now and then."""
        now = time.monotonic()
        if not self._polled and now < self._next_glance:
            return False
        self._next_glance = now + GLANCE_SECONDS
        return True

    def _watch_peer(self) -> None:
        """From now on, wake up when the present peer ends, and no other."""
        if self._epoll is None:
            return
        self._unwatch_peer()
        now = self._endpoint.peer_fileno()
        if now >= 0:
            self._watched = os.dup(now)  # so that it can be taken out again, whatever becomes of theirs
            self._epoll.register(self._watched, select.EPOLLIN)

    def _unwatch_peer(self) -> None:
        watched, self._watched = self._watched, -1
        if watched >= 0:
            self._forget(watched)
            os.close(watched)

    def _forget(self, fd: int) -> None:
        """Take a descriptor out of the epoll, if it is in it."""
        if self._epoll is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def _clear_bell(self) -> None:
        """Before an end that an event loop watches looks for work: the bell, and what would be heard for ever."""
        self._bell.clear()
        if self._endpoint.coordinator_gone:
            self._forget(self._endpoint.fileno())

    def _remember_work(self) -> bool:
        """There is work. An event loop shall see so until this end is asked in vain: True."""
        if self._polled:
            self._bell.signal()
        return True

    def _hang_up(self) -> None:
        """Give everything back but the memory."""
        if self._epoll is not None:
            self._unwatch_peer()
            self._epoll.close()
            self._epoll = None
        self._endpoint.close()

    def _refuse_work(self) -> None:
        """Nothing works any more through this end, in a forked child."""
        raise NotImplementedError

    def close(self) -> None:
        """Give this end back."""
        raise NotImplementedError

    def __reduce__(self) -> NoReturn:
        raise TypeError("an end of a lane belongs to its process: send its `handle`, and attach by that")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(InvalidState):  # the block's own exception matters more
                self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.region}/{self.lane}>"


_all: weakref.WeakSet[End] = weakref.WeakSet()


def _forked() -> None:
    for end in _all:
        end._refuse_work()  # noqa: SLF001 - our own


os.register_at_fork(after_in_child=_forked)
