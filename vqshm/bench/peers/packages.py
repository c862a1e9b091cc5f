"""Packages: sockets and shared-memory queues that pip installs. Each is imported in the processes that use it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

from vqshm.bench.peers.base import Mode, Peer, load, remove_tagged, socket_path

_ALL = frozenset({"oneway", "roundtrip", "fanin", "fanout", "objects", "idle", "wakeup"})
PATIENCE = 60.0  # seconds that a call may block


class Zmq(Peer):
    """PUSH and PULL over a Unix socket, as many messages queued on either side as the others may queue in all."""

    name = group = package = "pyzmq"
    module = "zmq"
    takes = _ALL
    fan_ends = 4000  # it deals them out to whoever has room

    def tear_down(self) -> None:
        """Remove the socket's name."""
        socket_path(self.tag).unlink(missing_ok=True)

    def _open(self, kind: str, *, bind: bool) -> Any:
        zmq = load("zmq")
        self._context = zmq.Context()
        self._socket = self._context.socket(getattr(zmq, kind))
        for option, value in ((zmq.SNDHWM, self.depth), (zmq.RCVHWM, self.depth), (zmq.LINGER, 0)):
            self._socket.setsockopt(option, value)
        (self._socket.bind if bind else self._socket.connect)(f"ipc://{socket_path(self.tag)}")
        return self._socket

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all connect alike
        """`send`."""
        send: Callable[[Any], Any] = self._open("PUSH", bind=self.receivers > 1).send
        return send

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all connect alike
        """`recv`."""
        recv: Callable[[], Any] = self._open("PULL", bind=self.receivers == 1).recv
        return recv

    def close(self) -> None:
        """Close the socket at once."""
        self._socket.close(0)
        self._context.term()


class ZmqView(Zmq):
    """Without the copies that can be spared."""

    mode: ClassVar[Mode] = "view"
    takes = frozenset({"oneway"})

    def sender(self, index: int) -> Callable[[Any], Any]:
        """`send` without a copy."""
        send = super().sender(index)
        return lambda message: send(message, 0, False)  # type: ignore[call-arg]  # noqa: FBT003 - flags, copy

    def receiver(self, index: int) -> Callable[[], Any]:
        """`recv` without a copy."""
        recv = super().receiver(index)
        return lambda: recv(0, False).buffer  # type: ignore[call-arg]  # noqa: FBT003 - flags, copy


class FasterFifo(Peer):
    """A byte ring in shared memory under a mutex and condition variables. Its default deadline of 10 s is raised."""

    name = group = package = "faster-fifo"
    module = "faster_fifo"
    takes = _ALL

    def set_up(self) -> None:
        """Make one queue for bytes and one that pickles; children inherit them."""
        fifo = load("faster_fifo")
        load("faster_fifo_reduction")
        room = self.depth * (self.size + 8)
        self.queue = fifo.Queue(room, loads=bytes, dumps=_same)
        self.objects = fifo.Queue(max(room, 1 << 16))

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all share it
        """`put`."""
        put = self.queue.put
        return lambda message: put(message, True, PATIENCE)  # noqa: FBT003 - block

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all share it
        """`get`."""
        get = self.queue.get
        return lambda: get(True, PATIENCE)

    def object_sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all share it
        """`put` of the queue that pickles."""
        put = self.objects.put
        return lambda thing: put(thing, True, PATIENCE)  # noqa: FBT003 - block

    def object_receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all share it
        """`get` of the queue that unpickles."""
        get = self.objects.get
        return lambda: get(True, PATIENCE)


class FasterFifoBatch(FasterFifo):
    """Many at once."""

    mode: ClassVar[Mode] = "batch"
    takes = frozenset({"oneway"})

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all share it
        """`put_many`."""
        put = self.queue.put_many
        return lambda messages: put(messages, True, PATIENCE)  # noqa: FBT003 - block

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all share it
        """`get_many`."""
        get = self.queue.get_many
        return lambda: get(True, PATIENCE)


def _same(message: Any) -> Any:
    return message


class HyperQ(Peer):
    """A byte ring in shared memory under a mutex and condition variables. No deadlines."""

    name = group = package = "hyperq"
    module = "hyperq"
    takes = _ALL

    def set_up(self) -> None:
        """Make one queue for bytes and one that pickles; children attach by their names."""
        hyperq = load("hyperq")
        room = self.depth * (self.size + 16)
        room += -room % 4096
        pair = hyperq.BytesHyperQ(room, self.tag), hyperq.HyperQ(max(room, 1 << 16), f"{self.tag}o")
        self._unpickled["pair"] = pair
        self.names = [queue.shm_name for queue in pair]

    def tear_down(self) -> None:
        """Drop them, which removes their names."""
        self._unpickled.clear()
        remove_tagged(self.tag)

    def _attach(self, kind: str, name: str) -> Any:
        self._queue = getattr(load("hyperq"), kind)(name)
        return self._queue

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all share it
        """`put`."""
        put: Callable[[Any], Any] = self._attach("BytesHyperQ", self.names[0]).put
        return put

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all share it
        """`get`."""
        get: Callable[[], Any] = self._attach("BytesHyperQ", self.names[0]).get
        return get

    def object_sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all share it
        """`put` of the queue that pickles."""
        put: Callable[[Any], Any] = self._attach("HyperQ", self.names[1]).put
        return put

    def object_receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all share it
        """`get` of the queue that unpickles."""
        get: Callable[[], Any] = self._attach("HyperQ", self.names[1]).get
        return get


class Tachyon(Peer):
    """A ring in shared memory for one pair; looks 10,000 times, then sleeps on a futex."""

    name = group = "tachyon"
    package = "tachyon-ipc"
    module = "tachyon"
    takes = _ALL - {"fanin", "fanout"}

    def tear_down(self) -> None:
        """Remove the socket over which the two found each other."""
        socket_path(self.tag).unlink(missing_ok=True)

    def _connect(self) -> Any:
        tachyon = load("tachyon")
        deadline = time.monotonic() + 20
        while True:
            try:
                self._bus = tachyon.Bus.connect(str(socket_path(self.tag)))
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)  # it cannot wait for the other side
            else:
                return self._bus

    def _listen(self) -> Any:
        # A power of two. The receiver publishes its place only every 32 messages, so there must be room for more.
        room = 1 << max(16, (max(self.depth, 40) * (self.size + 64) - 1).bit_length())
        self._bus = load("tachyon").Bus.listen(str(socket_path(self.tag)), room)
        return self._bus

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - there is one
        """`send`, again and again while the ring is full: it raises instead of waiting."""
        send, again, full = self._connect().send, os.sched_yield, load("tachyon").TachyonError

        def put(message: Any) -> None:
            while True:
                try:
                    send(message)
                except full as error:
                    if "full" not in str(error).lower():
                        raise
                    again()
                else:
                    return

        return put

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - there is one
        """The next message's `data`."""
        following = iter(self._listen()).__next__
        return lambda: following().data


class TachyonView(Tachyon):
    """Looked at in place."""

    mode: ClassVar[Mode] = "view"
    takes = frozenset({"oneway", "roundtrip"})

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - there is one
        """`acquire_rx`, entered."""
        acquire = self._listen()._bus.acquire_rx  # noqa: SLF001 - its own documentation does not offer another way

        def recv() -> memoryview:
            self._guard = acquire()
            self._guard.__enter__()
            self._view = memoryview(self._guard)
            return self._view

        return recv

    def release(self) -> None:
        """Leave it."""
        self._view.release()
        self._guard.__exit__(None, None, None)


class TachyonBatch(Tachyon):
    """Sent one by one, received many at once."""

    mode: ClassVar[Mode] = "batch"
    takes = frozenset({"oneway"})

    def sender(self, index: int) -> Callable[[Any], Any]:
        """All of a list."""
        put = super().sender(index)

        def put_all(messages: list[bytes]) -> None:
            for message in messages:
                put(message)

        return put_all

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - there is one
        """`drain_batch`, copied."""
        drain = self._listen().drain_batch

        def recv() -> list[bytes]:
            with drain() as views:
                return [bytes(memoryview(views[place])) for place in range(len(views))]

        return recv


PACKAGES: tuple[type[Peer], ...] = (
    Zmq,
    ZmqView,
    FasterFifo,
    FasterFifoBatch,
    HyperQ,
    Tachyon,
    TachyonView,
    TachyonBatch,
)
