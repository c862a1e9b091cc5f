"""In lane: a lane of a fan-in, and what becomes of its senders and messages."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vqshm.errors import InvalidState, MessageTooLarge
from vqshm.message.receiver import Receiver

if TYPE_CHECKING:
    from collections import deque
    from types import TracebackType

TURN: Final = 16  # messages of a lane at a time
_TURN_BYTES: Final = 1 << 16  # likewise, judged by the last one


class Departed(NamedTuple):
    """A sender that is no longer there, and everything it sent was taken."""

    lane: str
    pid: int
    ended: bool  # its process is no more


class InLane(Receiver):
    """A lane of a fan-in, which never waits by itself."""

    backlog: deque[bytes] | None = None  # of the fan
    came = False  # a sender has come since the last EndOfMessages
    resets = False  # its sender broke a rule, and begins anew
    let_go_later = False  # its sender has left, and views of its messages are out
    _known = 0  # the inlet's epoch of the sender that was noticed last
    _noted = False  # that one has left
    _batch = TURN
    _shown = -1  # messages when the counters were shown

    @property
    def present(self) -> bool:
        """Whether a sender is there, from whom messages can be expected; behind a violation, after its reset."""
        if not self._device.running:
            return self.resets and not self.deserted
        hopeless = self._inlet.broken is not None and self._device.coordinator_gone  # without one there are no resets
        return not self._noted and not hopeless

    @property
    def deserted(self) -> bool:
        """Whether no sender is there, and none can come."""
        return not self._device.running and (self._device.closing or self._device.coordinator_gone)

    def has_message(self) -> bool:
        """Whether there is a message. Raises the PeerViolation of a sender that breaks a rule."""
        inlet = self._inlet
        return inlet.ready and inlet.available() > 0

    def take(self, limit: int) -> list[bytes]:
        """1 to `limit` messages, of those that are there."""
        inlet = self._inlet
        limit = min(limit, self._batch)
        messages = inlet.recv_many(limit, 0)
        self._batch = min(TURN, _TURN_BYTES // (len(messages[-1]) + 1) + 1)
        if len(messages) < limit:
            inlet.tell()  # its sender may wait, and it may be long until this lane is looked at again
        return messages

    def tell(self) -> None:
        """Show the sender everything that was given back."""
        if self._inlet.ready:
            self._inlet.tell()

    def finish(self) -> None:
        """What was received is done with."""
        self._inlet.done()

    def arm(self) -> bool:
        """Ask to be woken, then look again: whether there is a message after all."""
        inlet = self._inlet
        if not inlet.ready:
            return False
        if self._shown != inlet.messages:
            self._shown = inlet.messages
            self.show_counts()
        inlet.tell()
        return inlet.enable_notification()

    def disarm(self) -> None:
        """Ask not to be woken."""
        if self._inlet.ready:
            self._inlet.disable_notification()

    def notice(self) -> Departed | None:
        """Find out whether a sender came, or left; the latter, once everything that it sent was taken."""
        device, inlet = self._device, self._inlet
        device.raise_spoilt()
        if not device.running:
            return None
        if self._known != inlet.epoch:
            self._known = inlet.epoch
            self._noted = self.let_go_later = self.resets = False
            self._shown = -1
            self.came = True
        departed = None
        if not self._noted:
            gone = device.peer_gone or device.leaving  # looked at before the ring: what it sent, it sent before that
            if not gone or (inlet.broken is None and inlet.available()):
                return None
            self._noted = True
            self.resets = inlet.broken is not None and device.resetting
            if not self.resets:
                departed = Departed(self.lane, device.peer.pid if device.peer is not None else 0, device.driver_ended)
        self.let_go_later = self.lent() > 0
        if not self.let_go_later:
            self._let_go()
        return departed

    def lent(self) -> int:
        """Messages that are looked at in place."""
        if os.getpid() != self._pid:
            return 0
        self._inlet.collect()
        self.tell()
        return self._inlet.lent

    def _refuse_work(self) -> None:
        super()._refuse_work()
        if self.backlog is not None:
            self.backlog.clear()  # they are the parent's


class Copied:
    """A message that was taken before somebody asked to look at it in place; used like a `Loan`."""

    replayed, attempts = False, 1  # a lane that resumes is never taken from ahead
    room = 0  # nobody waits for a reply: what is taken as bytes is answered then

    def __init__(self, data: bytes) -> None:
        self._view: memoryview | None = memoryview(data)

    @property
    def view(self) -> memoryview:
        """The bytes, read-only. Raises InvalidState once the message was given back."""
        if self._view is None:
            raise InvalidState("this message was given back")
        return self._view

    def reply(self, data: Any) -> None:
        """There is no room for a reply. Raises MessageTooLarge for any but an empty one, InvalidState."""
        count = memoryview(data).nbytes
        if self.view is not None and count:
            raise MessageTooLarge(f"a reply of {count} bytes to what is no call", count=count, limit=0)

    def release(self) -> None:
        """Give the message back. May be called twice. What was made from the view stays good: it is a copy."""
        if self._view is not None:
            with contextlib.suppress(BufferError):
                self._view.release()
            self._view = None

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
