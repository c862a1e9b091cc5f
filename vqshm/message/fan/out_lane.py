"""Out lane: a lane of a fan-out, which takes a message if it has room, and never waits for room by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vqshm.errors import InvalidState, NoRoom, VqshmError
from vqshm.message.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from vqshm.lane.reservation import Reservation
    from vqshm.message.sender import LaneDriver
    from vqshm.notify import Deadline


class Gone(NamedTuple):
    """A receiver that is left out from now on."""

    lane: str
    pid: int
    undelivered: int  # messages that it did not give back
    error: VqshmError  # why


class OutLane(Sender):
    """A lane of a fan-out, which waits by itself only for the answer to a call."""

    def __init__(self, driver: LaneDriver) -> None:
        super().__init__(driver)
        self.pid = driver.peer.pid if driver.peer is not None else 0
        self.driver = driver
        self.outlet = driver.outlet
        self._shown = 0  # messages when the counters were shown

    def offer(self, data: Any) -> bool:
        """Send a message if there is room."""
        outlet = self.outlet
        if not outlet.ready or (not outlet.num_free and not outlet.reclaim()):
            return False
        try:
            outlet.send(data, 0)
        except NoRoom:
            return False
        except InvalidState:
            if outlet.ready and outlet.reserved:
                return False  # reservations hold all of its memory
            raise
        return True

    def offer_many(self, messages: Sequence[Any]) -> int:
        """Send as many messages as there is room for: how many."""
        outlet = self.outlet
        if not outlet.ready or (not outlet.num_free and not outlet.reclaim()):
            return 0
        if outlet.reserved:
            return int(self.offer(messages[0]))
        try:
            outlet.send_many(messages, 0)
        except NoRoom as error:
            return int(error.facts["sent"])
        return len(messages)

    def fits(self, messages: int, count: int) -> bool:
        """Whether so many messages, of `count` bytes in all, surely find room."""
        outlet = self.outlet
        arena = outlet.arena
        if outlet.ready and (outlet.num_free < messages or arena.free < count or arena.out + messages > outlet.size):
            outlet.reclaim()
        return (
            outlet.ready and outlet.num_free >= messages and arena.free >= count and arena.out + messages <= outlet.size
        )

    def hold(self, count: int) -> Reservation | None:
        """Room for a message, if there is."""
        outlet = self.outlet
        if not outlet.ready:
            return None
        try:
            return outlet.reserve(count, 0)
        except NoRoom:
            return None
        except InvalidState:
            if outlet.ready and outlet.reserved:
                return None
            raise

    def has_back(self) -> bool:
        """Whether the receiver has given something back that was not noticed yet."""
        return self.outlet.ready and self.outlet.used() > 0

    def pending(self) -> int:
        """Messages that the receiver did not give back."""
        if self.outlet.ready:
            self.outlet.reclaim()
        return self.outlet.in_flight

    def arm(self, half: bool) -> bool:  # noqa: FBT001 - for half of what is out
        """Ask to be woken when something comes back, then look again: whether something did."""
        outlet = self.outlet
        if not outlet.ready or not outlet.in_flight:
            return False
        if self._shown != outlet.messages:
            self._shown = outlet.messages
            self.show_counts()
        return outlet.enable_notification(outlet.in_flight >> 1 if half else 1)

    def sleep(self, deadline: Deadline, after: int) -> bool:
        """As `OutletKeeper.sleep`; for who does not wait, the fan keeps watch."""
        return not deadline.expired and super().sleep(deadline, after)


class Draft:
    """A broadcast that is being written; used like a `Reservation`."""

    def __init__(self, count: int, send: Callable[[memoryview], None]) -> None:
        self._view: memoryview | None = memoryview(bytearray(count))
        self._send = send

    @property
    def view(self) -> memoryview:
        """The bytes, to be written. Raises InvalidState once the message was sent or cancelled."""
        if self._view is None:
            raise InvalidState("this reservation was sent or cancelled")
        return self._view

    def commit(self, count: int = -1) -> None:
        """Send the first `count` bytes; all if negative. Raises as `Fanout.send`, ValueError for too many."""
        view = self.view
        if count > len(view):
            raise ValueError(f"{len(view)} bytes were reserved, not {count}")
        self._send(view[: len(view) if count < 0 else count])
        self._view = None

    def cancel(self) -> None:
        """Send nothing."""
        self._view = None

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._view is not None:
            self.commit()
        self.cancel()


def pieces_of(data: Any) -> list[memoryview]:
    """The bytes of a message, in order. Raises TypeError, ValueError."""
    views = [memoryview(piece) for piece in (data if isinstance(data, (list, tuple)) else [data])]
    if not all(view.c_contiguous for view in views):
        raise ValueError("the bytes must lie in one contiguous piece: this buffer does not")
    return [view.cast("B") for view in views if view.nbytes]


def bytes_of(data: Any) -> int:
    """How many bytes a message has. Raises TypeError, ValueError."""
    return len(data) if type(data) is bytes else sum(map(len, pieces_of(data)))


def write(view: memoryview, pieces: list[memoryview]) -> None:
    """Copy the bytes of a message into the room for it."""
    at = 0
    for piece in pieces:
        view[at : at + len(piece)] = piece
        at += len(piece)
