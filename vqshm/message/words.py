"""Words: what programs that use `queue.Queue` say: put and get of objects, at the ends of a lane.

    sender.put(obj)                     obj = receiver.get()                what an object may be: see `payload`
    sender.put(obj, timeout=1.0)        obj = receiver.get(timeout=1.0)     queue.Full, queue.Empty
    sender.put_nowait(obj)              obj = receiver.get_nowait()
    sender.put_many(objects)            objects = receiver.get_many(100)    1 to 100 of them
                                        with receiver.get_view() as obj:    arrays and tables in place: no copy at all
                                        x = receiver.lend(numpy.mean)       likewise, and nobody need clean up

Threads may share an end, as long as they say nothing but these words to it. Otherwise an end is for one thread.

There is no `task_done` and no `join`; `flush` waits until everything was received. A sender that leaves ends the
queue: `get` raises EndOfMessages, an EOFError, once everything was received. Where receivers resume, threads that share
one say `get_view` or `lend`: each `get` tells that the object before it is done, whoever got that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from vqshm.errors import DeadlineExceeded, InvalidState, NoMessage, NoRoom, ProtocolError, VqshmError
from vqshm.memory.pool import GRAIN
from vqshm.message import payload
from vqshm.notify import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from vqshm.lane.loan import Loan
    from vqshm.lane.outlet import Outlet
    from vqshm.lane.reservation import Reservation

_Result = TypeVar("_Result")


class Turns:
    """One thread after the other: an end itself serves only one."""

    _late: type[DeadlineExceeded]  # what it is when a turn does not come in time

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._word_lock = threading.Lock()
        _all.add(self)

    def _take_turn(self, timeout: float | None) -> float | None:
        """Wait until it is this thread's turn; what is left of the time then. Raises ValueError, NoRoom, NoMessage."""
        if self._word_lock.acquire(blocking=False):
            return timeout
        deadline = Deadline(timeout)
        if not self._word_lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            raise self._late(f"{self!r}: other threads were waiting here all the time")
        return deadline.remaining()


class PutWords(Turns):
    """The words of a sender, said with `send`, `send_many`, `reserve` and `qsize`, which the sender has."""

    _late = NoRoom

    if TYPE_CHECKING:
        _outlet: Outlet

    def send(self, data: Any, timeout: float | None = None) -> None:
        """One message."""
        raise NotImplementedError

    def send_many(self, messages: Iterable[Any], timeout: float | None = None) -> None:
        """Several messages."""
        raise NotImplementedError

    def reserve(self, count: int, timeout: float | None = None) -> Reservation:
        """Room for one message."""
        raise NotImplementedError

    def qsize(self) -> int:
        """Messages that were sent and not given back yet."""
        raise NotImplementedError

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002 - as queue.Queue
        """Send an object as one message. Waits for room if `block`, at most `timeout` seconds (None: for ever).

        Raises NoRoom, a queue.Full; TypeError, ValueError or OverflowError for what no message can be made of, before
        anything is sent; else as `send`.
        """
        message = payload.encode(obj)
        timeout = self._take_turn(timeout if block else 0)
        try:
            if type(message) is payload.Body:
                with self.reserve(message.count, timeout) as view:
                    message.write(view)
            else:
                self.send(message, timeout)
        finally:
            self._word_lock.release()

    def put_nowait(self, obj: Any) -> None:
        """Send an object if there is room. Raises as `put`."""
        self.put(obj, block=False)

    def put_many(self, objects: Iterable[Any], block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
        """Put each of the objects, `timeout` for each; all of them are encoded before the first is sent.

        Raises as `put`; `facts["sent"]` of a NoRoom tells how many were sent before.
        """
        messages = [payload.encode(obj) for obj in objects]
        timeout = self._take_turn(timeout if block else 0)
        try:
            self._send_all(messages, timeout)
        finally:
            self._word_lock.release()

    def _send_all(self, messages: list[payload.Message], timeout: float | None) -> None:
        done = 0
        while done < len(messages):
            here = messages[done]
            end = done + 1
            try:
                if type(here) is payload.Body:
                    with self.reserve(here.count, timeout) as view:
                        here.write(view)
                else:
                    while end < len(messages) and type(messages[end]) is not payload.Body:
                        end += 1
                    self.send_many(messages[done:end], timeout)
            except NoRoom as error:
                error.facts["sent"] = done + error.facts.get("sent", 0)
                raise
            done = end

    def empty(self) -> bool:
        """Whether the receiver has given back everything that was sent; it gives back some at a time."""
        return not self.qsize()

    def full(self) -> bool:
        """Whether there is no room for even the smallest message now."""
        self.qsize()  # takes back what was given back
        return self._outlet.num_free < 1 or self._outlet.arena.free < GRAIN


class GetWords(Turns):
    """The words of a receiver, said with `recv`, `recv_many` and `recv_view`, which the receiver has."""

    _late = NoMessage
    _frames = False  # the last object was no msgpack: see `get`
    _careful = False  # a message may be given back only when the caller is done with it

    def recv(self, timeout: float | None = None) -> bytes:
        """One message."""
        raise NotImplementedError

    def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:
        """Several messages."""
        raise NotImplementedError

    def recv_view(self, timeout: float | None = None) -> Loan:
        """One message in place."""
        raise NotImplementedError

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002 - as queue.Queue
        """The next object, which is the caller's own. Waits if `block`, at most `timeout` seconds (None: for ever).

        Raises NoMessage, a queue.Empty; EndOfMessages once the sender has left and everything was received;
        ProtocolError for a message that is no object, behind which the next one comes; MissingExtra; else as `recv`.
        """
        timeout = self._take_turn(timeout if block else 0)
        try:
            # Small objects are read fastest from bytes; the body of a frame is copied only once, if it is looked at in
            # place. Who sends one kind of object is likely to go on with it.
            if not self._frames or self._careful:
                message = self.recv(timeout)
                self._frames = message[:1] == _MARK
            else:
                return self._get_frame(timeout)
        finally:
            self._word_lock.release()
        return payload.decode(message)

    def _get_frame(self, timeout: float | None) -> Any:
        loan = self.recv_view(timeout)
        try:
            self._frames = loan.view[:1] == _MARK
            return payload.decode(loan.view)
        finally:
            loan.release()

    def get_nowait(self) -> Any:
        """The next object, if there is one. Raises as `get`."""
        return self.get(block=False)

    def get_many(self, limit: int, block: bool = True, timeout: float | None = None) -> list[Any]:  # noqa: FBT001, FBT002
        """1 to `limit` objects: all that are there, after waiting for the first. Raises as `get`.

        If some of the messages are no objects, `facts["objects"]` of the ProtocolError has the others.
        """
        objects, failures = [], []
        timeout = self._take_turn(timeout if block else 0)
        try:
            messages = self.recv_many(limit, timeout)
        finally:
            self._word_lock.release()
        for message in messages:
            try:
                objects.append(payload.decode(message))
            except ProtocolError as error:
                failures.append(error)
        if failures:
            failures[0].facts["objects"] = objects
            raise failures[0]
        return objects

    def get_view(self, block: bool = True, timeout: float | None = None) -> ObjectLoan:  # noqa: FBT001, FBT002
        """The next object in place, until it is given back. Raises as `get`.

        with receiver.get_view() as frame:      # an array over the shared memory, read-only
            total = frame.sum()
            del frame                           # nothing may look at the memory any more when the block ends
        """
        timeout = self._take_turn(timeout if block else 0)
        try:
            loan = self.recv_view(timeout)
        finally:
            self._word_lock.release()
        try:
            return ObjectLoan(loan, payload.decode_in_place(loan.view))
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they look at the message, which must go back
            loan.release()
            raise

    def lend(self, function: Callable[[Any], _Result], block: bool = True, timeout: float | None = None) -> _Result:  # noqa: FBT001, FBT002
        """What `function` returns for the next object, which it gets in place. Raises as `get`, and what it raises.

        InvalidState if it kept the object, or something that looks at the same memory.
        """
        with self.get_view(block, timeout) as obj:
            result = function(obj)
            del obj
        return result


class ObjectLoan:
    """An object that is looked at in place. A context manager; see `Receiver.get_view`."""

    __slots__ = ("_loan", "_object")

    def __init__(self, loan: Loan, obj: Any) -> None:
        self._loan = loan
        self._object: list[Any] = [obj]  # until it is given out

    def release(self) -> None:
        """Give the message back. May be called twice.

        Raises InvalidState while something still looks at it; once that is gone the message goes back by itself, or at
        the next `release`.
        """
        try:
            for obj in self._object:
                if isinstance(obj, memoryview):
                    obj.release()
                del obj
            self._object.clear()
            self._loan.release()
        except (InvalidState, BufferError) as error:
            raise InvalidState(
                f"something made of this message still exists, an array perhaps: `del` it before the block ends, or "
                f"use `lend` ({error})"
            ) from None

    @property
    def replayed(self) -> bool:
        """Whether it may have been received before; see `Receiver.replayed`."""
        return self._loan.replayed

    @property
    def attempts(self) -> int:
        """For which time it is received; see `Receiver.attempts`."""
        return self._loan.attempts

    def __enter__(self) -> Any:
        if not self._object:
            raise InvalidState("this object was given back")
        return self._object[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            with contextlib.suppress(VqshmError):  # the block's own exception matters more
                self.release()


_MARK = bytes([payload.MARK])
_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _forked() -> None:
    for end in _all:
        end._word_lock = threading.Lock()  # noqa: SLF001 - our own; who had its turn is not in this process


os.register_at_fork(after_in_child=_forked)
