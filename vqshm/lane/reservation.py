# cython: nonecheck=False, initializedcheck=False
"""Reservation: room for a message, which is written in place, and then sent or given back.

It is open while the outlet holds what it lends (`Outlet._lents`), and nobody else's room can be taken for its own, late
as it may come. One that is dropped is left to the outlet (`_orphans`), which takes its room back when nobody can write
there any more.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NoReturn

from vqshm.errors import InvalidState, VqshmError
from vqshm.memory import atomic

if TYPE_CHECKING:
    from types import TracebackType

    from vqshm.lane.outlet import Outlet
    from vqshm.memory.lent import Lent


class Reservation:
    """Room for a message, to be written in place. A context manager; see `Outlet.reserve`."""

    __slots__ = ("_count", "_epoch", "_lent", "_offset", "_outlet", "_ticket", "_view")

    _outlet: Outlet | None  # None: it is over
    _offset: int
    _count: int
    _ticket: int  # in the arena
    _epoch: int
    _lent: Lent
    _view: memoryview | None

    @property
    def view(self) -> memoryview:
        """The bytes, to be written. Raises InvalidState once the message was sent or cancelled."""
        outlet = self._outlet
        if outlet is None or outlet.epoch != self._epoch or not self._is_open(outlet):
            raise InvalidState("this reservation was sent or cancelled")
        if self._view is None:
            self._view = self._lent.view()
        return self._view

    def commit(self, count: int = -1) -> None:
        """Send the first `count` bytes; all if negative. Raises InvalidState while something made of the view exists.

        ValueError for more bytes than were reserved. Who is interrupted may have sent the message or not; if not, it is
        still reserved, and can be sent or cancelled.
        """
        if count > self._count:
            raise ValueError(f"{self._count} bytes were reserved, not {count}")
        self._let_go()._commit(self, self._count if count < 0 else count)

    def cancel(self) -> None:
        """Give the room back. Does nothing if the message was sent or cancelled already. Raises as `commit`."""
        outlet = self._outlet
        if outlet is None:
            return
        if outlet.epoch != self._epoch or self._is_open(outlet):
            self._let_go()._cancel_reserved(self._ticket)
        self._outlet = None

    def _is_open(self, outlet: Outlet) -> bool:
        """Whether it is, though it was not told that it is over: whoever would have told may have been interrupted."""
        return not atomic.INTERRUPTIBLE or outlet._is_open(self._ticket, self._lent)

    def _let_go(self) -> Outlet:
        """Nobody can write any more: the outlet, which is ready."""
        outlet = self._outlet
        if outlet is None:
            raise InvalidState("this reservation was sent or cancelled")
        if self._view is not None:
            try:
                self._view.release()
            except BufferError as error:
                raise InvalidState(f"something made from the view of this reservation still exists: {error}") from None
            if self._lent.exports:
                raise InvalidState("a part of the view of this reservation still exists: delete or release it")
        if not outlet.ready:
            outlet.keeper.get_ready()
        if outlet.epoch != self._epoch:
            self._outlet = None
            raise InvalidState("the lane was reset since this was reserved")
        if not self._is_open(outlet):
            self._outlet = None
            raise InvalidState("this reservation was sent or cancelled")
        self._lent.close()
        return outlet

    def __del__(self) -> None:
        if atomic.INTERRUPTIBLE and not hasattr(self, "_outlet"):
            return  # its maker was interrupted
        outlet = self._outlet
        if outlet is not None:
            self._outlet = None
            self._view = None
            outlet._orphans.append((self._ticket, self._lent))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a reservation cannot be copied")

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outlet is None:
            return
        if kind is None:
            self.commit()
        else:
            with contextlib.suppress(VqshmError):  # the block's own exception matters more
                self.cancel()
