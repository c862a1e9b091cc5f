"""Ours: vqshm in its modes. The coordinator is a process of its own, which ends with the parent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from vqshm.bench.peers.base import Mode, Peer

_ALL: Final = frozenset({"oneway", "kicks", "roundtrip", "fanin", "fanout", "objects", "idle", "wakeup", "growth"})
PATIENCE: Final = 30.0  # seconds for the other side to attach
LIMIT: Final = 32  # messages that one call takes, in mode batch


class Vqshm(Peer):
    """One call per message, copied in, copied out."""

    name = "vqshm"
    group = "vqshm"
    takes = _ALL
    fan_ends = 0  # a receiver hears that the sender has left
    ring = 0  # descriptors of a lane; 0: room for as many messages as the others may queue

    def set_up(self) -> None:
        """Start the coordinator."""
        from vqshm import open_channel  # noqa: PLC0415 - not where only peers run

        size = self.ring or 1 << (self.depth - 1).bit_length()
        room = self.depth * (self.size + 64)
        self._unpickled["channel"] = open_channel(
            self.tag, senders=self.senders, receivers=self.receivers, size=size, buffer_bytes=room + -room % 4096
        )

    def tear_down(self) -> None:
        """End it, which removes the region."""
        channel = self._unpickled.pop("channel", None)
        if channel is not None:
            channel.close()

    def pids(self) -> list[int]:
        """The coordinator's."""
        channel = self._unpickled.get("channel")
        return [channel.pid] if channel is not None else []

    def sending(self, index: int) -> Any:
        """Attach as sender `index`."""
        import vqshm  # noqa: PLC0415 - as above

        if self.receivers > 1:
            self._end: Any = vqshm.Fanout.attach(self.tag, mode=self.fan_out, timeout=PATIENCE)
        else:
            lane = f"s{index}r0" if self.senders > 1 else None
            self._end = vqshm.Sender.attach(self.tag, lane, timeout=PATIENCE)
        return self._end

    def receiving(self, index: int) -> Any:
        """Attach as receiver `index`."""
        import vqshm  # noqa: PLC0415 - as above

        if self.senders > 1:
            self._end = vqshm.Fanin.attach(self.tag, timeout=PATIENCE)
        else:
            lane = f"s0r{index}" if self.receivers > 1 else None
            self._end = vqshm.Receiver.attach(self.tag, lane, timeout=PATIENCE)
        return self._end

    def sender(self, index: int) -> Callable[[Any], Any]:
        """`send`."""
        send: Callable[[Any], Any] = self.sending(index).send
        return send

    def receiver(self, index: int) -> Callable[[], Any]:
        """`recv`."""
        recv: Callable[[], Any] = self.receiving(index).recv
        return recv

    def caller(self, index: int) -> Callable[[bytes], bytes]:
        """`call`, with room for an answer as long as the question."""
        exchange, size = self.sending(index).call, self.size
        return lambda message: exchange(message, size)

    def server(self, index: int) -> Callable[[], Any]:
        """`serve`, with what came as the answer."""
        serve = self.receiving(index).serve
        return lambda: serve(bytes)

    def flush(self) -> None:
        """Nothing waits in the process that sends; what it has sent stands in the ring."""

    def counts(self) -> dict[str, int]:
        """Messages, kicks or calls, and what was suppressed."""
        return dict(self._end.counts)

    def close(self) -> None:
        """Leave."""
        self._end.close()


class VqshmBatch(Vqshm):
    """Many at once."""

    mode: ClassVar[Mode] = "batch"
    takes = frozenset({"oneway", "kicks"})

    def sender(self, index: int) -> Callable[[Any], Any]:
        """`send_many`."""
        send_many: Callable[[Any], Any] = self.sending(index).send_many
        return send_many

    def receiver(self, index: int) -> Callable[[], Any]:
        """`recv_many`."""
        recv_many = self.receiving(index).recv_many
        return lambda: recv_many(LIMIT)


class VqshmView(Vqshm):
    """Copied in, looked at in place."""

    mode: ClassVar[Mode] = "view"
    takes = frozenset({"oneway"})

    def receiver(self, index: int) -> Callable[[], Any]:
        """`recv_view`, entered."""
        recv_view = self.receiving(index).recv_view

        def recv() -> Any:
            self._loan = recv_view()
            return self._loan.__enter__()

        return recv

    def release(self) -> None:
        """Leave it."""
        self._loan.release()


class VqshmReserve(VqshmView):
    """Written in place, looked at in place."""

    mode: ClassVar[Mode] = "reserve"

    def sender(self, index: int) -> Callable[[Any], Any]:
        """`reserve`, with a stamp at both ends."""
        reserve, size = self.sending(index).reserve, self.size

        def send(head: bytes) -> None:
            with reserve(size) as room:
                room[:16] = head
                room[-8:] = head[:8]

        return send


class VqshmBroadcast(Vqshm):
    """Each receiver gets each message."""

    fan_out = "broadcast"
    takes = frozenset({"fanout"})


class VqshmInterpreted(Vqshm):
    """With the interpreted core."""

    name = "vqshm interpreted"
    takes = frozenset({"interpreted"})
    environment: ClassVar[dict[str, str]] = {"VQSHM_PURE": "1"}


class VqshmInterpretedBatch(VqshmBatch):
    """With the interpreted core, many at once."""

    name = "vqshm interpreted"
    takes = frozenset({"interpreted"})
    environment: ClassVar[dict[str, str]] = {"VQSHM_PURE": "1"}


OURS: tuple[type[Peer], ...] = (
    Vqshm,
    VqshmBatch,
    VqshmView,
    VqshmReserve,
    VqshmBroadcast,
    VqshmInterpreted,
    VqshmInterpretedBatch,
)
