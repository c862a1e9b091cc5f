"""Standard: what the standard library offers, and a bare eventfd, the floor of all wake-ups."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

from vqshm.bench.peers.base import Peer

_ALL = frozenset({"oneway", "roundtrip", "fanin", "fanout", "objects", "idle", "wakeup", "interpreted"})
_SPAWN = multiprocessing.get_context("spawn")


class Queue(Peer):
    """A pipe, a lock, a thread that feeds the pipe. Pickles by itself."""

    name = "mp.Queue"
    group = "multiprocessing"
    takes = _ALL
    queue: Any

    def set_up(self) -> None:
        """Make the queue; children inherit it."""
        self.queue = _SPAWN.Queue(self.depth)

    def tear_down(self) -> None:
        """Close the parent's end."""
        self.queue.close()

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all share it
        """`put`."""
        put: Callable[[Any], Any] = self.queue.put
        return put

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all share it
        """`get`."""
        get: Callable[[], Any] = self.queue.get
        return get

    object_sender = sender
    object_receiver = receiver


class SimpleQueue(Queue):
    """A pipe and a lock. Bounded by the pipe's 64 KiB."""

    name = "mp.SimpleQueue"

    def set_up(self) -> None:
        """Make the queue; children inherit it."""
        self.queue = _SPAWN.SimpleQueue()


class Pipe(Peer):
    """A pipe with lengths in it. Bounded by the pipe's 64 KiB."""

    name = "mp.Pipe"
    group = "multiprocessing"
    takes = _ALL - {"fanin", "fanout"}

    def set_up(self) -> None:
        """Make the pipe; children inherit it."""
        self.reader, self.writer = _SPAWN.Pipe(duplex=False)

    def tear_down(self) -> None:
        """Close the parent's ends."""
        self.reader.close()
        self.writer.close()

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - there is one
        """`send_bytes`."""
        return self.writer.send_bytes

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - there is one
        """`recv_bytes`."""
        return self.reader.recv_bytes

    def object_sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - there is one
        """`send`, which pickles."""
        return self.writer.send

    def object_receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - there is one
        """`recv`, which unpickles."""
        return self.reader.recv


class Eventfd(Peer):
    """No message at all, but the system calls that wake: what no transport that sleeps can beat."""

    name = "bare eventfd"
    group = "eventfd"
    takes = frozenset({"wakeup"})

    def set_up(self) -> None:
        """Make it."""
        self._unpickled["fd"] = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)

    def tear_down(self) -> None:
        """Close it."""
        os.close(self._unpickled.pop("fd"))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "inherited": reduction.DupFd(self._unpickled["fd"])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fd = state["inherited"].detach()

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - there is one
        """`eventfd_write`."""
        fd, write = self._fd, os.eventfd_write
        return lambda _message: write(fd, 1)

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - there is one
        """`eventfd_read`."""
        fd, read = self._fd, os.eventfd_read
        return lambda: read(fd)


STANDARD: tuple[type[Peer], ...] = (Queue, SimpleQueue, Pipe)
