"""Ears: everything that can wake one who waits for lanes: their doorbells, control connections and peers.

With eventfds all of them are in one epoll, so a sleep costs the same with one lane and with sixty-four; what an event
loop is given is that epoll, too. With semaphores a sleep is cut into slices.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING, Any

from vqshm.closing import close_all, owned
from vqshm.errors import InvalidState
from vqshm.notify import EventFd, park_on
from vqshm.notify.bed import Bed
from vqshm.notify.wait import GLANCE_SECONDS, LONGEST_SLEEP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqshm.closing import Owned
    from vqshm.message.ends import End
    from vqshm.notify import Notifier


class Ears:
    """Everything that can wake one who waits for some lanes."""

    def __init__(self, ends: Iterable[End]) -> None:
        self._ends = tuple(ends)
        self._bells: list[Notifier] = [end._bell for end in self._ends]  # noqa: SLF001 - a lane of ours
        self._peers: dict[int, _Peer] = {}  # per lane: whose end is watched
        self._sources: dict[int, tuple[str, int]] = {}  # descriptor -> what it is, of which lane
        self.given_out = False  # an event loop watches: then a bell rings whenever there is work
        self._next_glance = 0.0  # of time.monotonic()
        self._epoll: select.epoll | None = None
        self._bed: Bed | None = None
        if self._ends[0].notify == "eventfd":
            self._epoll = select.epoll()
            for number, end in enumerate(self._ends):
                self._add(self._bells[number].fileno(), "bell", number)
                self._add(end._endpoint.fileno(), "control", number)  # noqa: SLF001
                self._follow(number)
            if len(self._ends) == 1 and isinstance(self._bells[0], EventFd):
                self._bed = Bed(self._epoll, self._bells[0])

    def fileno(self) -> int:
        """As `End.fileno` and `Fan.fileno`."""
        if self._epoll is None:
            raise InvalidState("this channel notifies by semaphores, which an event loop cannot watch")
        if not self.given_out:
            self.given_out = True
            self._bells[0].signal()  # so that the first look finds out how things stand
        return self._epoll.fileno()

    def remember_work(self) -> None:
        """There is work. An event loop shall see so until somebody asks in vain."""
        if self.given_out:
            self._bells[0].signal()

    def clear(self) -> None:
        """Before those whom an event loop watches look for work: the bells, and what would be heard for ever."""
        for bell in self._bells:
            bell.clear()
        for end in self._ends:
            if end._endpoint.coordinator_gone:  # noqa: SLF001
                self._remove(end._endpoint.fileno())  # noqa: SLF001

    def may_glance(self) -> bool:
        """Whether one who does not wait shall look for news of the other side all the same: now and then."""
        now = time.monotonic()
        if not self.given_out and now < self._next_glance:
            return False
        self._next_glance = now + GLANCE_SECONDS
        return True

    def follow(self) -> None:
        """Watch the processes that are the peers now, and no others."""
        if self._epoll is not None:
            for number in range(len(self._ends)):
                self._follow(number)

    @property
    def bed(self) -> Bed | None:
        """To sleep on for the one lane there is, where nothing but news ends a sleep and no event loop watches."""
        return None if self.given_out or self._ends[0]._endpoint.has_news else self._bed  # noqa: SLF001

    def listen(self, seconds: float | None) -> bool:
        """Sleep at most so long until there is news, and take it in: whether there was any."""
        for end in self._ends:
            if end._endpoint.has_news:  # noqa: SLF001 - heard before, and could not be handled then
                end._endpoint.hear()  # noqa: SLF001
        if self._epoll is None:
            return self._listen_in_slices(seconds)
        heard = self._epoll.poll(None if seconds is None else min(seconds, LONGEST_SLEEP))  # None: without a timer
        for fd, _ in heard:
            what, number = self._sources.get(fd, ("", 0))
            if what == "bell":
                self._bells[number].clear()
            elif what == "control":
                self._hear(number)
            elif what == "peer":
                self._forget(number)  # it stays readable for ever
        return bool(heard)

    def _listen_in_slices(self, seconds: float | None) -> bool:
        """As `listen`, with semaphores."""
        watch = []
        for end in self._ends:
            endpoint = end._endpoint  # noqa: SLF001
            if not endpoint.coordinator_gone:
                watch.append(endpoint.fileno())
            if endpoint.peer_fileno() >= 0 and not endpoint.peer_gone:
                watch.append(endpoint.peer_fileno())
        ready = park_on(self._bells, watch, seconds)
        for end in self._ends:
            end._endpoint.hear()  # noqa: SLF001
        return bool(ready)

    def _hear(self, number: int) -> None:
        endpoint = self._ends[number]._endpoint  # noqa: SLF001
        try:
            endpoint.hear()
        finally:
            if endpoint.coordinator_gone:
                self._remove(endpoint.fileno())
            self._follow(number)

    def _follow(self, number: int) -> None:
        """Watch the process that is the peer of a lane now."""
        watch = self._ends[number]._endpoint._watch  # noqa: SLF001
        known = self._peers.get(number)
        if known is not None and (known.watch is not watch or watch.fileno() < 0):
            self._forget(number)
        if watch is not None and watch.fileno() >= 0 and number not in self._peers:
            # A duplicate: the endpoint closes its own whenever it likes, and a process that was forked meanwhile would
            # keep it in the epoll for ever, where nobody could remove it any more.
            self._peers[number] = _Peer(watch, owned(os.dup, watch.fileno()))
        if number in self._peers:
            self._add(self._peers[number].copy.fileno(), "peer", number)

    def _forget(self, number: int) -> None:
        peer = self._peers.get(number)
        if peer is not None:
            if not peer.copy.closed:
                self._remove(peer.copy.fileno())
            peer.copy.close()
            del self._peers[number]

    def _add(self, fd: int | None, what: str, number: int) -> None:
        if fd is not None and self._epoll is not None and fd not in self._sources:
            with contextlib.suppress(FileExistsError):  # an interrupted call came that far
                self._epoll.register(fd, select.EPOLLIN)
            self._sources[fd] = what, number

    def _remove(self, fd: int) -> None:
        if fd in self._sources and self._epoll is not None:
            with contextlib.suppress(FileNotFoundError):  # an interrupted call came that far
                self._epoll.unregister(fd)
            del self._sources[fd]

    def close(self) -> None:
        """Watch nothing any more."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = self._bed = None
        self._sources.clear()
        close_all(peer.copy for peer in self._peers.values())
        self._peers.clear()


class _Peer:
    """A process that is watched: by whom else, and by which descriptor of ours."""

    __slots__ = ("copy", "watch")

    def __init__(self, watch: Any, copy: Owned) -> None:
        self.watch = watch
        self.copy = copy
