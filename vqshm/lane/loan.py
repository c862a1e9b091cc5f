# cython: nonecheck=False, initializedcheck=False
"""Loan: a message that is looked at in place, and then given back.

One that is dropped is left to the inlet (`_orphans`): it goes back when nothing made from its view exists any more; or,
if nobody has looked at it, it was not received, and is handed out again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

from vqshm.errors import InvalidState, MessageTooLarge, VqshmError
from vqshm.memory import atomic

if TYPE_CHECKING:
    from types import TracebackType

    from vqshm.lane.inlet import Inlet
    from vqshm.memory.lent import Lent
    from vqshm.ring.chain import DescriptorChain


class Loan:
    """A message that is looked at in place. A context manager; see `Inlet.recv_view`.

    `attempts`: for which time it was received; see `ResumingInlet`.
    """

    __slots__ = (
        *("_answer", "_chain", "_count", "_epoch", "_head", "_inlet", "_lent", "_number", "_room", "_seen", "_view"),
        *("_written", "attempts"),
    )

    _inlet: Inlet | None
    _head: int  # -1: a copy, and the message was given back
    _count: int
    _epoch: int
    _number: int  # messages when it was lent
    _chain: DescriptorChain | None  # where there are more buffers than one to read and one to write
    _room: int
    _answer: int  # where it goes, if there is no `_chain`
    _written: int
    _lent: Lent
    _view: memoryview | None
    _seen: bool  # by whoever has it
    attempts: int

    @property
    def replayed(self) -> bool:
        """Whether it may have been received before, by a receiver that died."""
        return self.attempts > 1

    @property
    def view(self) -> memoryview:
        """The bytes, read-only. Raises InvalidState once the message was given back."""
        if self._inlet is None or self._inlet.epoch != self._epoch:
            raise InvalidState("this message was given back, or its sender has left")
        view = self._view
        if view is None:
            view = self._lent.view()
            self._view = view
        self._seen = True
        return view

    @property
    def room(self) -> int:
        """Bytes that a reply may have; 0 if nobody waits for one.

        An empty message that is no call has room for 1, which nobody reads.
        """
        return self._room

    def reply(self, data: Any) -> None:
        """Answer a call; the answer is sent when the message is given back. Raises InvalidState, MessageTooLarge."""
        inlet = self._inlet
        if inlet is None or not self._valid():
            raise InvalidState("this message was given back")
        count = atomic.count_of(data)
        if count > self._room:
            raise MessageTooLarge(
                f"{inlet.name}: a reply of {count} bytes; the call has room for {self._room}",
                count=count,
                limit=self._room,
            )
        if count > 0:
            inlet._write_reply(self._chain, self._answer, data, count)
        self._written = count
        self._seen = True

    def release(self) -> None:
        """Give the message back, with the reply if there is one. May be called twice.

        Raises InvalidState while something made from the view still exists; once that is gone the message goes back by
        itself, or at the next `release`.
        """
        inlet = self._inlet
        if inlet is None:
            return
        self._seen = True
        if self._view is not None:
            try:
                self._view.release()
            except BufferError as error:
                raise InvalidState(f"something made from the view of this message still exists: {error}") from None
            if self._lent.exports:
                raise InvalidState("a part of the view of this message still exists: delete or release it")
        self._lent.close()
        inlet._take_back(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a message that is lent cannot be copied")

    def _valid(self) -> bool:
        return self._inlet is not None and self._inlet.ready and self._inlet.epoch == self._epoch

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            with contextlib.suppress(VqshmError):  # the block's own exception matters more
                self.release()

    def __del__(self) -> None:
        if atomic.INTERRUPTIBLE and not hasattr(self, "_inlet"):  # it was not made
            return
        inlet = self._inlet
        if inlet is not None:
            self._view = None
            inlet._orphans.append(self)
            if not self._seen:
                inlet._left = True
