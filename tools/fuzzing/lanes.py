"""The ends of a lane, each with a hostile other side."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from fuzzing.feed import BUFFERS, Feed, Hand, Script, check_broken
from fuzzing.rings import MOST_STEPS, STARTS
from vqshm.errors import InvalidState, VqshmError
from vqshm.lane.inlet import Inlet
from vqshm.lane.outlet import Outlet

if TYPE_CHECKING:
    from vqshm.lane.loan import Loan
    from vqshm.lane.reservation import Reservation

AREA = 0x800  # bytes of the arena


class Bell:
    """A notifier that counts."""

    kind = "eventfd"

    def __init__(self) -> None:
        self.rung = 0

    def signal(self) -> None:
        self.rung += 1


def inlet(data: bytes) -> list[str]:  # noqa: C901 - a list of steps
    """The receiving end, on the memory of a hostile sender."""
    feed, script = Feed(data), Script()
    size, start, options = 1 << feed.upto(4), feed.pick(STARTS), feed.number(1)
    hand = Hand(feed, size, start)
    bell: Any = Bell()
    end = Inlet(
        hand.memory, hand.layout, bell, event_idx=bool(options & 1), indirect=bool(options & 2), area_bytes=AREA
    )
    end.seek(start, start)
    loans: list[Loan] = []

    def lend() -> Any:
        loan = end.recv_view(0)
        loans.append(loan)
        return f"{loan.view.tobytes().hex()} {loan.room}"

    def release(reply: bytes) -> Any:
        loan = loans.pop(feed.upto(len(loans) - 1))
        with contextlib.suppress(VqshmError):
            loan.reply(reply)
        loan.release()

    for _ in range(MOST_STEPS):
        if not feed.more:
            break
        step = feed.upto(11)
        if step < 3:
            hand.describe()
        elif step < 5:
            hand.offer()
        elif step == 5:
            hand.meddle("avail_ring")
        elif step == 6:
            check_broken(end, script.attempt("recv", lambda: end.recv(0)))
        elif step == 7:
            most = feed.upto(9)
            check_broken(end, script.attempt("recv_many", lambda most=most: end.recv_many(most, 0)))  # type: ignore[misc]
        elif step < 10:
            check_broken(end, script.attempt("recv_view", lend))
        elif step == 10:
            script.attempt("tell", end.tell)
        elif loans:
            reply = feed.take(feed.upto(16))
            script.attempt("release", lambda reply=reply: release(reply))  # type: ignore[misc]
    assert end.lent == len(loans), "messages that are lent out are miscounted"
    while loans:
        loans.pop().release()
    assert end.lent == 0
    return [*script.lines, f"{end.next_avail} {end.next_used} {end.messages} {bell.rung} {hand.digest()}"]


def outlet(data: bytes) -> list[str]:  # noqa: C901, PLR0915 - likewise
    """The sending end, with a hostile receiver."""
    feed, script = Feed(data), Script()
    size, start, options = 1 << feed.upto(4), feed.pick(STARTS), feed.number(1)
    hand = Hand(feed, size, start)
    bell: Any = Bell()
    end = Outlet(hand.memory, hand.layout, (BUFFERS, AREA), bell, event_idx=bool(options & 1))
    end.seek(start)
    open_: list[Reservation] = []

    def size_of_message() -> int:
        return feed.pick((8, 0, 1, 64, 65, 500, 0x800, 0x801))

    def reserve() -> Any:
        reservation = end.reserve(size_of_message(), 0)
        open_.append(reservation)
        view = reservation.view
        view[:] = b"\xaa" * len(view)
        return len(view)

    def close() -> Any:
        reservation = open_.pop(feed.upto(len(open_) - 1))
        if feed.upto(2):
            return reservation.commit(feed.pick((-1, 0, 1, 9)))
        return reservation.cancel()

    def heads() -> list[int]:
        """Those that are on offer, from what stands in the available ring."""
        idx = hand.idx("avail_ring")
        places = (hand.layout.avail_ring + 4 + 2 * ((idx - 1 - back) % size) for back in range(min(4, size)))
        return [int.from_bytes(hand.peek(place, 2), "little") for place in places]

    for _ in range(MOST_STEPS):
        if not feed.more:
            break
        step = feed.upto(11)
        if step < 3:
            message = b"\x55" * size_of_message()
            outcome = script.attempt("send", lambda message=message: end.send(message, 0))  # type: ignore[misc]
        elif step == 3:
            messages = [b"\x33" * size_of_message() for _ in range(feed.upto(5))]
            outcome = script.attempt("send_many", lambda messages=messages: end.send_many(messages, 0))  # type: ignore[misc]
        elif step == 4:
            outcome = script.attempt("reserve", reserve)
        elif step == 5:
            outcome = script.attempt("close", close) if open_ else None
        elif step == 6:
            count, room = size_of_message(), feed.upto(70)
            outcome = script.attempt("call", lambda count=count, room=room: end.call(b"?" * count, room, 0))  # type: ignore[misc]
        elif step < 9:
            hand.give_back(heads())
            outcome = None
        elif step == 9:
            hand.meddle("used_ring")
            outcome = None
        else:
            outcome = script.attempt("reclaim", end.reclaim)
        check_broken(end, outcome)
    while open_:
        with contextlib.suppress(InvalidState):
            open_.pop().cancel()
    lines = [*script.lines, f"{end.last_used} {end.messages} {end.in_flight} {bell.rung} {hand.digest()}"]
    end.restart()
    assert (end.num_free, end.arena.free, end.arena.out, end.reserved) == (size, AREA, 0, 0), "a restart left something"
    return lines
