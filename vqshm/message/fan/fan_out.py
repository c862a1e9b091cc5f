"""Fan-out: one process sends to many: a lane to each receiver, no lock and no ring that two of them share.

    with Fanout.attach("jobs") as jobs:                     # each message to one receiver: work sharing
        jobs.send_many(messages)
        answer = jobs.call(b"a question", 64)
    with Fanout.attach("news", mode="broadcast") as news:   # each message to every receiver
        news.send(b"to all of you")

Rules
- "share": messages go to whoever is expected to be done soonest (`turns` tells by what rule): one by one and in turn to
  those who take long, in runs to those who are quick. Who has no room is passed over; only when all are full does the
  sender wait, for all of them at once. A message lies in its receiver's lane from then on, so lanes that are to be
  shared evenly are short ones (`size`).
- "broadcast": a message goes to every living receiver or to none: room is found in all lanes before anything is sent.
  So the slowest one decides; at a deadline NoRoom names it, nobody has got the message, and to send it again gives it
  to nobody twice.
- A receiver that ends or leaves is left out, and named in `gone` with how many messages it did not give back: it may
  have looked at some of them, but never said so. The others go on; without any, PeerGone is raised.
- A receiver that breaks a rule is left out, too, and that is raised once: the message was not sent then.
"""

from __future__ import annotations

import contextlib
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

from vqshm.errors import CoordinatorGone, DeviceNeedsReset, InvalidState, NoRoom, PeerGone, QueueBroken, VqshmError
from vqshm.memory.pool import GRAIN
from vqshm.message.fan.base import ENDLESS, Fan
from vqshm.message.fan.out_lane import Draft, Gone, OutLane, bytes_of, pieces_of, write
from vqshm.message.fan.turns import Turns
from vqshm.message.words import PutWords
from vqshm.notify import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vqshm.lane.call import Call
    from vqshm.lane.outlet import Outlet
    from vqshm.lane.reservation import Reservation

Mode = Literal["share", "broadcast"]

_TURN: Final = 16  # messages of a `send_many` to one receiver at a time
_SHORT_SLEEP: Final = 0.002  # seconds: how long half of the messages are waited for, before one is enough


class Fanout(PutWords, Fan["OutLane"]):
    """The sending end of several lanes; see `attach`. For one thread at a time."""

    _ours = "sender"

    @classmethod
    def attach(cls, region: str, *, mode: Mode = "share", timeout: float | None = 5.0) -> Self:
        """Take the first free sender's place of a channel, and wait for its receivers, all of them.

        Raises RoleTaken if no place is free, DeadlineExceeded if a receiver is missing after `timeout` seconds, and as
        `Sender.attach`.
        """
        if mode not in get_args(Mode):
            raise ValueError(f'a fan-out is of mode "share" or "broadcast", not {mode!r}')
        place, lanes = cls._take_place(
            region, lambda name, end: OutLane.attach(region, name, timeout=end.remaining()), Deadline(timeout)
        )
        try:
            return cls(lanes, place, mode)
        except BaseException:
            for lane in reversed(lanes):
                lane.close()
            raise

    def __init__(self, lanes: list[OutLane], place: int = 0, mode: Mode = "share") -> None:
        super().__init__(lanes, place)
        self.mode = mode
        self.gone: list[Gone] = []
        self._living = list(lanes)
        self._turns = Turns(self, [lane.outlet for lane in lanes])
        self.send = self._turns.send if mode == "share" else self._turns.send_all  # type: ignore[method-assign]

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self, data: Any, timeout: float | None = None) -> None:
        """Send one message: any contiguous buffer, or a list or tuple of them, which are gathered in place.

        Waits for room at most `timeout` seconds (None: for ever). Raises NoRoom (a QueueFull and a TimeoutError), and
        then nobody got it; MessageTooLarge, ValueError, TypeError, PeerGone without receivers, InvalidState, and once
        the PeerViolation of a receiver that breaks a rule.
        """
        self.send(data, timeout)

    def send_many(self, messages: Iterable[Any], timeout: float | None = None) -> None:
        """Send each of the messages as `send` would, `timeout` for each, but show them to the receivers some at a time.

        Raises as `send`; `facts["sent"]` of a NoRoom tells how many were sent before. Each receiver of a broadcast got
        those, and no others.
        """
        Deadline(timeout)  # raises
        self.glance()
        rest, done = iter(messages), 0
        some = self._share_some if self.mode == "share" else self._broadcast_some
        while chunk := list(islice(rest, _TURN * max(1, len(self._living)))):
            at = 0
            while at < len(chunk):
                try:
                    at += some(chunk, at, timeout)
                except NoRoom as error:
                    error.facts["sent"] = done + at
                    raise
            done += at

    def reserve(self, count: int, timeout: float | None = None) -> Reservation | Draft:  # type: ignore[override]  # likewise
        """Room for a message of `count` bytes with the next receiver in turn, to be written in place.

        A broadcast is written beside the lanes, which share no memory, and waits for room on leaving the `with` block.
        Raises as `send`, ValueError for a negative count.
        """
        if count < 0:
            raise ValueError(f"cannot reserve {count} bytes")
        if self.mode != "share":
            return Draft(count, partial(self.send, timeout=timeout))
        found: list[Reservation] = []

        def attempt() -> bool:
            for lane in self._in_turn():
                held = lane.hold(count)
                if held is not None:
                    found.append(held)
                    return True
            return False

        self._await(attempt, timeout)
        return found[0]

    def call(self, data: Any, answer_bytes: int, timeout: float | None = None) -> bytes:
        """Send a message to the next receiver in turn and return its answer, of at most `answer_bytes` bytes.

        Raises as `Sender.call`; InvalidState in a broadcast.
        """
        return self._next_for_call(timeout).call(data, answer_bytes, timeout)

    def start_call(self, data: Any, answer_bytes: int, timeout: float | None = None) -> Call:
        """As `Sender.start_call`, to the next receiver in turn; InvalidState in a broadcast."""
        return self._next_for_call(timeout).start_call(data, answer_bytes, timeout)

    def _next_for_call(self, timeout: float | None) -> Outlet:
        if self.mode != "share":
            raise InvalidState("a broadcast has no single answer")
        Deadline(timeout)  # raises
        self.glance()
        lanes = list(self._in_turn())
        free = next((lane for lane in lanes if lane.outlet.num_free > 1), lanes[0])
        return free.outlet

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the living receivers have given back everything that was sent. Raises NoRoom, and as `send`."""
        # Every lane is asked, each time: what one gave back and nobody noticed would count as news for ever.
        self._await(lambda: not sum(lane.pending() for lane in self._living), timeout, "not everything was received")

    # -- figures -------------------------------------------------------------------------------------------------------

    def qsize(self) -> int:
        """Messages that were sent and not given back yet by living receivers; a broadcast counts once for each."""
        return sum(lane.qsize() for lane in self._living)

    def full(self) -> bool:
        """Whether there is no room for even the smallest message now: in a share nowhere, in a broadcast somewhere."""
        fit = [lane.fits(1, GRAIN) for lane in self._living]
        return not (any(fit) if self.mode == "share" else fit and all(fit))

    @property
    def capacity(self) -> int:
        """Bytes that fit into a lane at a time; no message can be larger."""
        return min(lane.capacity for lane in self._every)

    @property
    def counts(self) -> dict[str, int]:
        """As those of a sender, of all lanes together; a broadcast counts once for each receiver."""
        every = [lane.counts for lane in self._every]
        return {key: sum(counts[key] for counts in every) for key in every[0]} | {"waits": self._waits}

    # -- sharing -------------------------------------------------------------------------------------------------------

    def _in_turn(self) -> Iterator[OutLane]:
        """The living lanes, whose turn it is first."""
        living = self._living
        first = max(0, self._turns.pick(0))
        yield from living[first:]
        yield from living[:first]

    def share(self, data: Any, timeout: float | None) -> None:
        """As `TurnsKeeper.share`."""
        self._await(lambda: any(lane.offer(data) for lane in self._in_turn()), timeout)

    def glance(self) -> None:
        """As `TurnsKeeper.glance`."""
        self._check_usable()
        if self._ears.listen(0) or not self._living or self.notify != "eventfd":
            self._check_life()

    def _share_some(self, chunk: Sequence[Any], at: int, timeout: float | None) -> int:
        """Send the next messages of a chunk to somebody: how many."""
        share = min(_TURN, -(-len(chunk) // max(1, len(self._living))))
        if self._turns.pick(0) >= 0:
            lane = self._living[self._turns.turn]
            count = lane.offer_many(chunk[at : at + max(share, self._turns.left)])
            if count:
                return count
        self.share(chunk[at], timeout)
        return 1

    # -- broadcasting --------------------------------------------------------------------------------------------------

    def broadcast(self, data: Any, timeout: float | None) -> None:
        """As `TurnsKeeper.broadcast`."""
        count = bytes_of(data)
        if self._living and self._all_fit(1, 2 * count + GRAIN):  # once what was given back is noticed
            for lane in self._living:
                lane.outlet.send(data, 0)
        else:
            self._broadcast_slowly(data, count, timeout)

    def _broadcast_some(self, chunk: Sequence[Any], at: int, timeout: float | None) -> int:
        """Send the next messages of a chunk to everybody: how many."""
        piece = chunk[at : at + 2 * _TURN]
        counts = [bytes_of(data) for data in piece]
        # Each message fills cache lines, and the largest may not fit in front of the arena's end.
        if self._living and self._all_fit(len(piece), sum(counts) + max(counts) + GRAIN * (len(piece) + 1)):
            for lane in self._living:
                lane.outlet.send_many(piece, 0)
            return len(piece)
        self.broadcast(piece[0], timeout)
        return 1

    def _all_fit(self, messages: int, count: int) -> bool:
        return all(lane.fits(messages, count) for lane in self._living)

    def _broadcast_slowly(self, data: Any, count: int, timeout: float | None) -> None:
        """As `_broadcast`, when a lane may have no room: reserve it in all of them, then send, or give it back."""
        held: dict[OutLane, Reservation] = {}

        def missing() -> list[OutLane]:
            return [lane for lane in self._living if lane not in held]

        def attempt() -> bool:
            for lane in missing():
                room = lane.hold(count)
                if room is not None:
                    held[lane] = room
            return not missing()

        try:
            self._await(attempt, timeout, waits_for=missing)
            ready = [held.pop(lane) for lane in self._living]
        finally:
            for room in held.values():  # of who is gone, or of everybody
                with contextlib.suppress(VqshmError):
                    room.cancel()
        pieces = pieces_of(data)
        for room in ready:
            write(room.view, pieces)
        for room in ready:
            room.commit()

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _await(
        self,
        attempt: Callable[[], bool],
        timeout: float | None,
        what: str = "no room",
        waits_for: Callable[[], list[OutLane]] | None = None,
    ) -> None:
        """Return when an `attempt` was successful. Raises as `send`."""
        self._check_usable()
        if not self._living:
            self._check_life()
        if attempt():
            return
        deadline = Deadline(timeout)
        now = deadline.expired
        if not now and self._look(lambda: any(lane.has_back() for lane in self._living)) and attempt():
            return
        if now and not self._ears.may_glance():
            raise NoRoom(f"{self.region}: {what} in time; {self._stalled(waits_for)}", in_flight=self._in_flight())
        self._sleep_until(attempt, deadline, what, waits_for)
        if self._armed:
            self._armed = False
            for lane in self._living:
                lane.outlet.disable_notification()
        self._ears.remember_work()

    def _sleep_until(
        self,
        attempt: Callable[[], bool],
        deadline: Deadline,
        what: str,
        waits_for: Callable[[], list[OutLane]] | None,
    ) -> None:
        """As `_await`, when looking did not help."""
        late, news = 0, True
        half = not self._ears.given_out  # at first half of what is out is waited for: it wakes us less often
        while True:
            self._check_life()
            if attempt():
                return
            lanes = self._living if waits_for is None else waits_for()
            if not any(lane.outlet.in_flight for lane in lanes):
                self._refuse(lanes)
            self._armed = True
            if any([lane.arm(half) for lane in lanes]):  # noqa: C419 - all of them
                continue
            if late and (not news or late > ENDLESS):
                raise NoRoom(f"{self.region}: {what} in time; {self._stalled(waits_for)}", in_flight=self._in_flight())
            late += deadline.expired
            left = 0 if late else deadline.remaining()
            for lane in lanes:
                left = lane.driver.sleep_limit(left)
            if half:
                left = _SHORT_SLEEP if left is None else min(left, _SHORT_SLEEP)
            news = self._sleep(left)
            half = False

    def _refuse(self, lanes: list[OutLane]) -> None:
        """Nothing is out, and still there is no room: reservations hold it, for whose end nobody can wait here."""
        reserved = sum(lane.outlet.reserved for lane in lanes)
        if reserved:
            raise InvalidState(
                f"{self.region}: no room, and nothing but {reserved} reservations holds it: send or cancel them first",
                reserved=reserved,
            )

    def _check_life(self) -> None:
        """Leave out who is gone, or broke a rule. Raises PeerGone if nobody is left, DeviceNeedsReset."""
        for lane in self._living[:]:
            try:
                lane.driver.check()
            except (PeerGone, QueueBroken) as error:  # what broke it was raised already
                self._leave_out(lane, lane.outlet.broken or error)
            except DeviceNeedsReset as error:
                self._leave_out(lane, error)
                raise
        if not self._living:
            names = ", ".join(f"{gone.lane}: process {gone.pid}, {gone.undelivered} undelivered" for gone in self.gone)
            last = self.gone[-1]
            kind = CoordinatorGone if isinstance(last.error, CoordinatorGone) else PeerGone
            raise kind(
                f"{self.region}: every receiver is gone ({names})",
                pid=last.pid,
                role="device",
                in_flight=sum(gone.undelivered for gone in self.gone),
            )

    def _leave_out(self, lane: OutLane, error: VqshmError) -> None:
        self._living = [each for each in self._living if each is not lane]
        self._turns.follow([each.outlet for each in self._living])
        self.gone.append(Gone(lane.lane, lane.pid, lane.pending(), error))

    def _in_flight(self) -> int:
        return sum(lane.outlet.in_flight for lane in self._living)

    def _stalled(self, waits_for: Callable[[], list[OutLane]] | None) -> str:
        """Who holds what, for the message of a deadline: the first few."""
        lanes = [lane for lane in (self._living if waits_for is None else waits_for()) if lane.outlet.in_flight]
        words = [f"{lane.lane}: {lane.stalled()}" for lane in lanes[:4]]
        return "; ".join([*words, f"and {len(lanes) - 4} more"] if len(lanes) > len(words) else words)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the lanes back; what was sent stays to be received. May be called twice.

        Raises InvalidState while reservations are open; nothing is closed then.
        """
        if self._gone:
            return
        for lane in self._every:
            lane._check_idle()  # noqa: SLF001 - as its own close would, but before any is closed
        self._hang_up()
