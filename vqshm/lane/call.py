# cython: nonecheck=False, initializedcheck=False
"""Call: a message whose answer is still to come. Its answer lies in its own room until it is fetched or forgotten.

One that is dropped is left to the outlet (`_orphans`), which forgets it when it is asked next what came back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from vqshm.errors import InvalidState, RequestLost
from vqshm.memory import atomic

if TYPE_CHECKING:
    from vqshm.lane.outlet import Outlet


class Call:
    """A message whose answer is still to come; see `Outlet.start_call`."""

    __slots__ = ("_epoch", "_offset", "_outlet", "_reply", "_ticket")

    _outlet: Outlet | None  # None: it is over
    _reply: bytes | None  # the answer, once it was fetched
    _ticket: int  # in the arena
    _offset: int  # of the answer, in the arena
    _epoch: int

    def answer(self, timeout: float | None = None) -> bytes:
        """The answer, once. Raises NoMessage if it is not there in `timeout` seconds: ask again, or `forget` it.

        InvalidState when it was taken or forgotten, or the lane was reset, RequestLost if it was given up; else as
        `Outlet.send`. Who was interrupted may ask again.
        """
        outlet = self._outlet
        if outlet is None:
            raise InvalidState("this call was answered or forgotten")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        reply = self._reply
        if reply is None:
            if outlet.epoch != self._epoch:
                raise InvalidState(f"{outlet.name} was reset while a call waited for its answer")
            written = outlet._await_answer(self._ticket, timeout)
            if written < 0:
                outlet._end_call(self._ticket)
                self._outlet = None
                raise RequestLost(f"{outlet.name}: whoever received this call ended before answering; it was given up")
            reply = self._reply = atomic.copy(outlet._bytes, self._offset, written)
        outlet._end_call(self._ticket)
        self._outlet = None
        return reply

    def forget(self) -> None:
        """Nobody waits for this answer any more. Does nothing if it was taken or forgotten already."""
        outlet = self._outlet
        if outlet is not None:
            outlet._forget_call(self._ticket)
            self._outlet = None

    def __del__(self) -> None:
        if atomic.INTERRUPTIBLE and not hasattr(self, "_outlet"):
            return  # its maker was interrupted
        outlet = self._outlet
        if outlet is not None:
            self._outlet = None
            outlet._orphans.append((self._ticket, None))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a call cannot be copied")
