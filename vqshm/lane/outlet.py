# cython: nonecheck=False, initializedcheck=False
"""Outlet: the end of a lane where messages go in: a driver half whose chains are messages [2.7.13].

The way of a message: room in the arena and a descriptor → the bytes are copied (or written in place, `reserve`) → one
device-readable descriptor → published → the device is kicked if it wants to be. What the device has given back is
noticed when room is short, many at a time.

    a message                    one device-readable buffer
    an empty message             one device-writable byte: real devices refuse buffers of no bytes
    a call                       as above, and one device-writable buffer for the answer

Who finds no room looks for a while (`Pace`); then it is the keeper's turn, who knows the process on the other side and
how to sleep: a `Sender`.

An exception may strike the interpreted core between any two steps. A message is sent by one store of the ring half, to
`_capacity`; who owns what room then, see `holdings`. A kick counts as done when all of it is (`_show`). Compiled, only
what is Python code raises such exceptions: a message's buffers, the bell, the keeper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vqshm import spec
from vqshm.errors import InvalidState, MessageTooLarge, NoMessage, NoRoom, RuleError, VqshmError
from vqshm.lane.call import Call
from vqshm.lane.holdings import Holdings
from vqshm.lane.keeper import ALONE
from vqshm.lane.reservation import Reservation
from vqshm.lane.turn import at_work
from vqshm.memory import atomic
from vqshm.memory.address import align_up
from vqshm.memory.atomic import Region
from vqshm.memory.lent import new_lent
from vqshm.memory.pool import GRAIN
from vqshm.notify.eventfd import ring
from vqshm.notify.spin import Pace
from vqshm.notify.wait import Deadline
from vqshm.ring import layout as ring_layout

if TYPE_CHECKING:
    from vqshm.lane.keeper import OutletKeeper
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.notify import Notifier
    from vqshm.ring.layout import SplitLayout
    from vqshm.ring.tries import Undone

_IDX = ring_layout.IDX
_WRITE = spec.VIRTQ_DESC_F_WRITE
_SHOW_EVERY = 4096  # messages
_NONE, _WAITING, _FORGOTTEN, _LOST = 0, 1, 2, 3  # states of a call: see `holdings`
_ANSWERED = 4  # and more: it came back with an answer, of as many bytes as it is more
_TAKING = 3  # likewise
_BATCH = 31  # a `send_many` publishes whenever so many bits of its count are 0: every 32 messages


class Outlet(Holdings):
    """The driver's end of a lane: `area` is the arena's (guest address, bytes), `bell` kicks the device.

    For one thread at a time: who comes while another one waits gets InvalidState.
    """

    __slots__ = (
        "_base",
        "_bytes",
        "_undone",
        "_unshown",
        "_waiting",
        "_window",
        "bell",
        "epoch",
        "keeper",
        "kicks",
        "kicks_suppressed",
        "pace",
        "ready",
        "waits",
    )

    def __init__(
        self,
        memory: Memory,
        layout: SplitLayout,
        area: tuple[int, int],
        bell: Notifier,
        keeper: OutletKeeper = ALONE,
        *,
        event_idx: bool = True,
        undone: Undone | None = None,
        name: str = "lane",
    ) -> None:
        self._base, count = area
        super().__init__(memory, layout, count, event_idx=event_idx, name=name)
        self._undone = undone  # where the device says which calls it gave up, if it may
        self._window = Region(memory.view(self._base, count))
        self._bytes = atomic.span_of(self._window)
        self.bell = bell
        self.keeper = keeper
        self.pace = Pace()
        self.epoch = 0  # restarts so far
        self._waiting = False  # somebody does
        self.ready = True  # whether messages can be offered; if not, `get_ready` says why
        self.kicks = self.kicks_suppressed = self.waits = 0
        self._unshown = 0  # messages that came back since the counters were shown

    def restart(self) -> None:
        """Begin anew, as after a reset: nothing is in flight, both positions are 0, reservations are void."""
        self.epoch += 1
        self._void()
        self.seek(0)
        self.broken = None

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self, data: Any, timeout: float | None = None) -> None:
        """Send one message: any contiguous buffer, or a list or tuple of them, which are gathered in place.

        Waits for room at most `timeout` seconds (None: for ever). Raises NoRoom (a QueueFull and a TimeoutError),
        MessageTooLarge, ValueError, TypeError, PeerGone, PeerViolation, QueueBroken, InvalidState.

        Who is interrupted by the exception of a signal's handler has sent all of the message or nothing; `messages`
        tells, after the next call. A receiver that sleeps may hear of it by that one only.
        """
        self._place(data, timeout)
        self._show()

    def send_many(self, messages: Iterable[Any], timeout: float | None = None) -> None:
        """Send each of the messages as `send` would, `timeout` for each, but show them to the device some at a time.

        Raises as `send`; `facts["sent"]` of a NoRoom tells how many were sent before.
        """
        done = 0
        try:
            for data in messages:
                self._place(data, timeout)
                done += 1
                if done & _BATCH == 0:
                    self._show()
        except BaseException as error:
            if self.ready:
                self._show()
            if isinstance(error, NoRoom):
                error.facts["sent"] = done
            raise
        self._show()

    def reserve(self, count: int, timeout: float | None = None) -> Reservation:
        """Room for a message of `count` bytes, to be written in place; it is sent on leaving its `with` block.

        Raises as `send`, ValueError for a negative count.
        """
        if count < 0:
            raise ValueError(f"cannot reserve {count} bytes")
        offset = self._room(count, timeout)
        reservation = Reservation.__new__(Reservation)
        reservation._outlet = None
        reservation._offset = offset
        reservation._count = count
        reservation._ticket = self.arena.ticket
        reservation._epoch = self.epoch
        try:
            reservation._lent = new_lent(self._window, offset, count, readonly=False)
        except BaseException:
            self._drop(self.arena.ticket)
            raise
        reservation._view = None
        reservation._outlet = self  # before it is open: if it is lost from now on, it will say so
        if atomic.INTERRUPTIBLE:
            self._lents[self.arena.ticket & self._mask] = reservation._lent  # from now on it is open
        self.num_free -= 1  # its descriptor is set aside, so that sending it never fails
        self.reserved += 1
        self._torn = 0
        return reservation

    def call(self, data: Any, answer_bytes: int, timeout: float | None = None) -> bytes:
        """Send a message and return the answer to it, of at most `answer_bytes` bytes (1 or more).

        Raises as `send`; NoMessage if there is no answer in `timeout` seconds, RequestLost if it was given up.
        """
        call = self.start_call(data, answer_bytes, timeout)
        try:
            return call.answer(timeout)
        except BaseException:
            call.forget()
            raise

    def start_call(self, data: Any, answer_bytes: int, timeout: float | None = None) -> Call:
        """The first half of `call`: send the message; ask what is returned for the answer. Raises as `send`."""
        if answer_bytes < 1:
            raise ValueError(f"an answer has room for at least 1 byte, not {answer_bytes}")
        pieces = counts = None
        if type(data) is bytes:
            count = atomic.count_of(data)
        else:
            pieces = data if isinstance(data, (list, tuple)) else (data,)
            counts = [atomic.count_of(piece) for piece in pieces]
            count = sum(counts)
        if self.size < 2 or answer_bytes > self.arena.size or count > self.arena.size:
            self._refuse_size(max(count, answer_bytes), 2)
        start = align_up(count, GRAIN)  # of the answer, behind the message
        call = Call.__new__(Call)
        call._outlet = None
        call._reply = None
        offset = self._room(start + answer_bytes, timeout, 2)
        ticket = self.arena.ticket
        if pieces is None or counts is None:
            atomic.fill(self._bytes, offset, data, count)
        else:
            self._fill_pieces(offset, pieces, counts)
        call._epoch = self.epoch
        call._ticket = ticket
        call._offset = offset + start
        call._outlet = self  # before it is offered: if it is lost from now on, it is forgotten
        self._state[ticket & self._mask] = _WAITING
        self._ticket[self._free] = ticket
        if self._undone is not None:
            self._undone.clear(self._free)
        if atomic.INTERRUPTIBLE:
            self._note(count)
        answer = self._base + offset + start
        if count > 0:
            self.add_pair(self._base + offset, count, answer, answer_bytes)
        else:
            self.add_one(answer, answer_bytes, _WRITE)
        self.calls += 1
        self.messages += 1
        self.bytes_out += count
        self._torn = 0
        self._show()
        return call

    def _await_answer(self, ticket: int, timeout: float | None) -> int:
        """The bytes of the answer to a call, once it is there; -2 if it was given up."""
        self._start_waiting()
        try:
            return self._await_answer_long(ticket, timeout)
        finally:
            self._waiting = False

    def _await_answer_long(self, ticket: int, timeout: float | None) -> int:
        deadline: Deadline | None = None
        while True:
            self._reclaim()
            if not self.arena.is_out(ticket):
                raise InvalidState(f"{self.name} was reset while a call waited for its answer, or it was forgotten")
            state = self._state[ticket & self._mask]
            if state >= _LOST:
                return state - _ANSWERED if state != _LOST else -2
            if deadline is None:
                seen = (timeout is None or timeout > 0) and self._look()
                deadline = Deadline(timeout)
            else:
                seen = not deadline.expired and self._look()
            if not seen and not self.keeper.sleep(deadline, 1):
                raise NoMessage(f"{self.name}: no answer came in time; {self.keeper.stalled()}")

    def reclaim(self) -> int:
        """Take back what the device has given back; how many messages. Raises as `reap`.

        What an interrupted call did not show the device, it is shown now.
        """
        self.collect()
        count = self._reclaim()
        if self._published != self._avail_idx and self.ready:
            self._show()
        return count

    # -- the steps of sending ------------------------------------------------------------------------------------------

    def _place(self, data: Any, timeout: float | None) -> None:
        """Copy a message into the arena and offer it; `_show` publishes."""
        if type(data) is bytes:
            count = atomic.count_of(data)
            offset = self._room(count, timeout)
            atomic.fill(self._bytes, offset, data, count)  # cannot fail, so nothing is to be undone
            self._offer_message(offset, count, self.arena.ticket)
            self._torn = 0
        elif isinstance(data, (list, tuple)):
            self._gather(data, timeout)
        else:
            self._gather((data,), timeout)

    def _gather(self, pieces: Sequence[Any], timeout: float | None) -> None:
        """As `_place`, for a message that lies in several buffers."""
        counts = [atomic.count_of(piece) for piece in pieces]
        count = sum(counts)
        offset = self._room(count, timeout)
        ticket = self.arena.ticket
        self._fill_pieces(offset, pieces, counts)
        self._offer_message(offset, count, ticket)
        self._torn = 0

    def _fill_pieces(self, offset: int, pieces: Sequence[Any], counts: Sequence[int]) -> None:
        """Copy a message to the room taken last, which is given back if that fails."""
        ticket = self.arena.ticket
        try:
            for piece, count in zip(pieces, counts, strict=True):
                atomic.fill(self._bytes, offset, piece, count)
                offset += count
        except BaseException:
            self._drop(ticket)
            raise

    def _room(self, count: int, timeout: float | None, descriptors: int = 1) -> int:
        """The offset of room for a message of `count` bytes, while as many descriptors are free. Raises as `send`.

        Nobody owns that room yet, and `_torn` says so.
        """
        if not self.ready or self._waiting:
            self._stop_here()
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        if self.num_free >= descriptors:
            offset = self._take(count if count > 0 else 1)
            if offset >= 0:
                return offset
        return self._await_room(count if count > 0 else 1, descriptors, timeout)

    def _take(self, count: int) -> int:
        """As `Arena.take`."""
        if atomic.INTERRUPTIBLE:
            self._torn = _TAKING
        offset = self.arena.take(count)
        if atomic.INTERRUPTIBLE and offset < 0:
            self._torn = 0
        return offset

    def _stop_here(self) -> None:
        """Say why nothing can be sent now."""
        if self._waiting:
            self._check_turn()
        if not self.ready:
            self.keeper.get_ready()

    def _check_turn(self) -> None:
        """Raise InvalidState if somebody is at work here, whom an exception has not taken away."""
        if not atomic.INTERRUPTIBLE or at_work(self):
            raise InvalidState(f"{self.name}: another thread waits for room or an answer here")
        self._waiting = False

    def _offer_message(self, offset: int, count: int, ticket: int) -> None:
        """Describe a message, and put it into the ring. `_torn` is left to the caller."""
        if atomic.INTERRUPTIBLE:
            self._note(count)
        self._ticket[self._free] = ticket
        if count > 0:
            self.add_one(self._base + offset, count, 0)
        else:
            self.add_one(self._base + offset, 1, _WRITE)
        self.messages += 1
        self.bytes_out += count

    def _show(self) -> None:
        """Show the device what was offered, and kick it if it sleeps. Who is interrupted here does it all again."""
        shown = self._avail_idx
        if self.publish_and_ask():
            self.kicks += 1
            ring(self.bell)
        else:
            self.kicks_suppressed += 1
        self._num_published = 0
        self._published = shown

    def _reclaim(self) -> int:
        """Take back what the device has given back; how many messages."""
        count = 0
        while True:
            head = self.reap_head() if self.calls == 0 else self._next_answer()
            if head < 0:
                break
            ticket = self._ticket[head]
            if self.calls == 0 or self._state[ticket & self._mask] < _LOST:
                self.arena.give(ticket)
            self._torn = 0
            count += 1
        self._unshown += count
        if self._unshown >= _SHOW_EVERY:
            self._unshown = 0
            self.keeper.show_counts()
        return count

    def _next_answer(self) -> int:
        """As `reap_head`, while calls are out: if it is the answer to one, that is noted before it is accepted."""
        head = self._peek()
        if head >= 0:
            ticket = self._ticket[head]
            slot = ticket & self._mask
            if atomic.INTERRUPTIBLE:
                self._torn = _TAKING
            if self._state[slot] == _WAITING:
                lost = self._undone is not None and self.written == 0 and self._undone.says(head)
                self._state[slot] = _LOST if lost else _ANSWERED + self.written  # from now on it is as good as accepted
            elif self._state[slot] == _FORGOTTEN:
                self._state[slot] = _NONE
                self.calls -= 1
            self._accept(head)
        return head

    def _commit(self, reservation: Reservation, count: int) -> None:
        """Send the first `count` bytes of an open reservation."""
        if atomic.INTERRUPTIBLE:
            self._torn = _TAKING
        self._offer_message(reservation._offset, count, reservation._ticket)
        if atomic.INTERRUPTIBLE:
            self._lents[reservation._ticket & self._mask] = None
        self.num_free += 1
        self.reserved -= 1
        self._torn = 0
        reservation._outlet = None
        self._show()

    def __reduce__(self) -> NoReturn:
        raise TypeError("the end of a lane cannot be copied")

    def _violation(self, error: RuleError) -> VqshmError:
        self.ready = False
        return super()._violation(error)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _await_room(self, count: int, descriptors: int, timeout: float | None) -> int:
        """As `_room`, when there was none at first sight."""
        if count > self.arena.size:
            self._refuse_size(count, descriptors)
        self._start_waiting()
        try:
            return self._await_room_long(count, descriptors, timeout)
        finally:
            self._waiting = False

    def _start_waiting(self) -> None:
        """Note that somebody waits, who has shown the device everything before: it cannot give back what it never saw.

        Raises InvalidState if somebody does already.
        """
        if self._waiting:
            self._check_turn()
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        self._waiting = True
        try:
            if self._published != self._avail_idx:
                self._show()
        except BaseException:
            self._waiting = False
            raise

    def _refuse_size(self, count: int, descriptors: int) -> NoReturn:
        if descriptors > self.size:
            raise InvalidState(f"{self.name}: a call takes {descriptors} descriptors, the lane has {self.size}")
        raise MessageTooLarge(
            f"{self.name}: a message of {count} bytes; the lane holds {self.arena.size} in all (buffer_bytes)",
            count=count,
            limit=self.arena.size,
        )

    def _await_room_long(self, count: int, descriptors: int, timeout: float | None) -> int:
        deadline: Deadline | None = None
        while True:
            self._reclaim()
            if self._orphans:
                self.collect()
            if self.num_free >= descriptors:
                offset = self._take(count)
                if offset >= 0:
                    return offset
            if self.in_flight == 0:
                raise InvalidState(
                    f"{self.name}: no room for {count} bytes, and only {self.reserved} reservations and "
                    f"{self.calls} answers hold it: send or cancel the ones, take the others",
                    reserved=self.reserved,
                )
            if deadline is None:
                # The first look comes before anything that costs more, the clock included.
                seen = (timeout is None or timeout > 0) and self._look()
                deadline = Deadline(timeout)
            else:
                seen = not deadline.expired and self._look()
            if not seen and not self.keeper.sleep(deadline, self.in_flight >> 1):
                raise NoRoom(
                    f"{self.name}: no room for {count} bytes in time; {self.keeper.stalled()}",
                    in_flight=self.in_flight,
                )

    def _look(self) -> bool:
        """Look for a while whether the device gives something back."""
        return self.pace.look(atomic.region_of(self._used), _IDX, self.last_used)
