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
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vqshm import spec
from vqshm.errors import InvalidState, MessageTooLarge, NoMessage, NoRoom, RequestLost, RuleError, VqshmError
from vqshm.lane.keeper import ALONE
from vqshm.memory import atomic
from vqshm.memory.address import align_up
from vqshm.memory.arena import Arena
from vqshm.memory.atomic import Region
from vqshm.memory.lent import Lent, new_lent
from vqshm.memory.pool import GRAIN
from vqshm.notify.eventfd import ring
from vqshm.notify.spin import Pace
from vqshm.notify.wait import Deadline
from vqshm.ring import layout as ring_layout
from vqshm.ring.split_driver import DriverQueue

if TYPE_CHECKING:
    from types import TracebackType

    from vqshm.lane.keeper import OutletKeeper
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.notify import Notifier
    from vqshm.ring.layout import SplitLayout
    from vqshm.ring.tries import Undone

_IDX = ring_layout.IDX
_WRITE = spec.VIRTQ_DESC_F_WRITE
_SHOW_EVERY = 4096  # messages
_WAITING = -1  # the state of a call: no answer yet
_FORGOTTEN = -2  # no answer yet, and nobody waits for it any more
_LOST = -3  # the device gave the call up
_LARGEST = (1 << 32) - GRAIN  # bytes of an arena: a descriptor's length has 32 bits
_BATCH = 31  # a `send_many` publishes whenever so many bits of its count are 0: every 32 messages


class Outlet(DriverQueue):
    """The driver's end of a lane: `area` is the arena's (guest address, bytes), `bell` kicks the device.

    For one thread at a time: who comes while another one waits gets InvalidState.
    """

    __slots__ = (
        "_answers",
        "_base",
        "_bytes",
        "_orphans",
        "_slot",
        "_undone",
        "_unshown",
        "_waiting",
        "_window",
        "arena",
        "bell",
        "bytes_out",
        "calls",
        "epoch",
        "keeper",
        "kicks",
        "kicks_suppressed",
        "messages",
        "pace",
        "ready",
        "reserved",
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
        super().__init__(memory, layout, event_idx=event_idx, name=name)
        self._undone = undone  # where the device says which calls it gave up, if it may
        self._base, count = area
        self._window = Region(memory.view(self._base, count))
        self._bytes = atomic.span_of(self._window)
        self.arena = Arena(min(count, _LARGEST), layout.size)
        self._slot = array("H", bytes(2 * layout.size))  # per head in flight: its slot in the arena
        self._answers: dict[int, int] = {}  # per slot of a call, its own till it ends: bytes of its answer, or a state
        self.calls = 0  # in `_answers`
        self.bell = bell
        self.keeper = keeper
        self.pace = Pace()
        self.epoch = 0  # restarts so far
        self.reserved = 0  # reservations that are open: each has a descriptor set aside
        self._orphans: list[tuple[int, int, Lent]] = []  # reservations that nobody will commit: see `Reservation`
        self._waiting = False  # somebody does
        self.ready = True  # whether messages can be offered; if not, `get_ready` says why
        self.messages = self.bytes_out = self.kicks = self.kicks_suppressed = self.waits = 0
        self._unshown = 0  # messages that came back since the counters were shown

    def restart(self) -> None:
        """Begin anew, as after a reset: nothing is in flight, both positions are 0, reservations are void."""
        self.detach_unused()
        self.seek(0)
        self.arena.clear()
        self._answers.clear()
        self.calls = 0
        self.reserved = 0
        self._orphans.clear()
        self.epoch += 1
        self.broken = None

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self, data: Any, timeout: float | None = None) -> None:
        """Send one message: any contiguous buffer, or a list or tuple of them, which are gathered in place.

        Waits for room at most `timeout` seconds (None: for ever). Raises NoRoom (a QueueFull and a TimeoutError),
        MessageTooLarge, ValueError, TypeError, PeerGone, PeerViolation, QueueBroken, InvalidState.
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
        reservation._slot = self.arena.slot
        reservation._epoch = self.epoch
        try:
            reservation._lent = new_lent(self._window, offset, count, readonly=False)
        except BaseException:
            self.arena.give(self.arena.slot)
            raise
        reservation._view = None
        reservation._outlet = self
        self.num_free -= 1  # its descriptor is set aside, so that sending it never fails
        self.reserved += 1
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
        offset = self._room(start + answer_bytes, timeout, 2)
        slot = self.arena.slot
        if pieces is None or counts is None:
            atomic.fill(self._bytes, offset, data, count)
        else:
            self._fill_pieces(offset, pieces, counts)
        answer = self._base + offset + start
        if count > 0:
            head = self.add_pair(self._base + offset, count, answer, answer_bytes)
        else:
            head = self.add_one(answer, answer_bytes, _WRITE)
        if self._undone is not None:
            self._undone.clear(head)
        self._slot[head] = slot
        self._answers[slot] = _WAITING
        self.calls += 1
        self.messages += 1
        self.bytes_out += count
        call._epoch = self.epoch
        call._slot = slot
        call._offset = offset + start
        call._outlet = self
        self._show()
        return call

    def _await_answer(self, slot: int, timeout: float | None) -> int:
        """The bytes of the answer to a call, once it is there."""
        self._start_waiting()
        try:
            return self._await_answer_long(slot, timeout)
        finally:
            self._waiting = False

    def _await_answer_long(self, slot: int, timeout: float | None) -> int:
        deadline: Deadline | None = None
        while True:
            self._reclaim()
            state = self._answers.get(slot)
            if state is None:
                raise InvalidState(f"{self.name} was reset while a call waited for its answer")
            written: int = state
            if written >= 0 or written == _LOST:
                return written
            if deadline is None:
                seen = (timeout is None or timeout > 0) and self._look()
                deadline = Deadline(timeout)
            else:
                seen = not deadline.expired and self._look()
            if not seen and not self.keeper.sleep(deadline, 1):
                raise NoMessage(f"{self.name}: no answer came in time; {self.keeper.stalled()}")

    def _forget_call(self, slot: int) -> None:
        """Nobody waits for this answer any more."""
        written = self._answers.get(slot, _FORGOTTEN)
        if written >= 0 or written == _LOST:
            del self._answers[slot]
            self.calls -= 1
            self.arena.give(slot)
        elif written == _WAITING:
            self._answers[slot] = _FORGOTTEN

    def reclaim(self) -> int:
        """Take back what the device has given back; how many messages. Raises as `reap`."""
        self.collect()
        return self._reclaim()

    # -- the steps of sending ------------------------------------------------------------------------------------------

    def _place(self, data: Any, timeout: float | None) -> None:
        """Copy a message into the arena and offer it; `_show` publishes."""
        if type(data) is bytes:
            count = atomic.count_of(data)
            offset = self._room(count, timeout)
            atomic.fill(self._bytes, offset, data, count)  # cannot fail, so nothing is to be undone
            self._offer_message(offset, count, self.arena.slot)
        elif isinstance(data, (list, tuple)):
            self._gather(data, timeout)
        else:
            self._gather((data,), timeout)

    def _gather(self, pieces: Sequence[Any], timeout: float | None) -> None:
        """As `_place`, for a message that lies in several buffers."""
        counts = [atomic.count_of(piece) for piece in pieces]
        count = sum(counts)
        offset = self._room(count, timeout)
        self._fill_pieces(offset, pieces, counts)
        self._offer_message(offset, count, self.arena.slot)

    def _fill_pieces(self, offset: int, pieces: Sequence[Any], counts: Sequence[int]) -> None:
        """Copy a message to the room taken last, which is given back if that fails."""
        slot = self.arena.slot
        try:
            for piece, count in zip(pieces, counts, strict=True):
                atomic.fill(self._bytes, offset, piece, count)
                offset += count
        except BaseException:
            self.arena.give(slot)
            raise

    def _room(self, count: int, timeout: float | None, descriptors: int = 1) -> int:
        """The offset of room for a message of `count` bytes, while as many descriptors are free. Raises as `send`."""
        if not self.ready or self._waiting:
            self._stop_here()
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        if self.num_free >= descriptors:
            offset = self.arena.take(count if count > 0 else 1)
            if offset >= 0:
                return offset
        return self._await_room(count if count > 0 else 1, descriptors, timeout)

    def _stop_here(self) -> None:
        """Say why nothing can be sent now."""
        if self._waiting:
            raise InvalidState(f"{self.name}: another thread waits for room or an answer here")
        self.keeper.get_ready()

    def _offer_message(self, offset: int, count: int, slot: int) -> None:
        """Describe a message, and put it into the ring."""
        if count > 0:
            head = self.add_one(self._base + offset, count, 0)
        else:
            head = self.add_one(self._base + offset, 1, _WRITE)
        self._slot[head] = slot
        self.messages += 1
        self.bytes_out += count

    def _show(self) -> None:
        """Show the device what was offered, and kick it if it sleeps."""
        if self.publish_and_ask():
            self.kicks += 1
            ring(self.bell)
        else:
            self.kicks_suppressed += 1

    def _reclaim(self) -> int:
        """Take back what the device has given back; how many messages."""
        count = 0
        head = self.reap_head()
        while head >= 0:
            if self.calls == 0 or not self._is_awaited(head, self._slot[head]):
                self.arena.give(self._slot[head])
            count += 1
            head = self.reap_head()
        self._unshown += count
        if self._unshown >= _SHOW_EVERY:
            self._unshown = 0
            self.keeper.show_counts()
        return count

    def collect(self) -> None:
        """Take back reservations that were dropped, once nobody can write to their room any more."""
        for orphan in self._orphans[:]:
            epoch, slot, lent = orphan
            if not lent.in_use:
                self._orphans.remove(orphan)
                lent.close()
                if epoch == self.epoch:
                    self.num_free += 1
                    self.reserved -= 1
                    self.arena.give(slot)

    def _is_awaited(self, head: int, slot: int) -> bool:
        """Whether this is the answer to a call, and somebody waits for it: then its room is still needed."""
        state = self._answers.get(slot)
        if state == _WAITING:
            lost = self._undone is not None and self.written == 0 and self._undone.says(head)
            self._answers[slot] = _LOST if lost else self.written
            return True
        if state == _FORGOTTEN:
            del self._answers[slot]
            self.calls -= 1
        return False

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
            raise InvalidState(f"{self.name}: another thread waits for room or an answer here")
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
                offset = self.arena.take(count)
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

    def holds(self) -> str:
        """Who holds what: for the message of a deadline."""
        slot, count = self.arena.oldest()
        if slot < 0:
            return "nothing is out"
        return (
            f"{self.in_flight} of {self.messages} messages are out, {self.arena.size - self.arena.free} of "
            f"{self.arena.size} bytes; the oldest takes {count} bytes"
        )


class Call:
    """A message whose answer is still to come; see `Outlet.start_call`."""

    __slots__ = ("_epoch", "_offset", "_outlet", "_slot")

    _outlet: Outlet | None
    _slot: int
    _offset: int  # of the answer, in the arena
    _epoch: int

    def answer(self, timeout: float | None = None) -> bytes:
        """The answer, once. Raises NoMessage if it is not there in `timeout` seconds: ask again, or `forget` it.

        InvalidState when it was taken or forgotten, or the lane was reset, RequestLost if it was given up; else as
        `Outlet.send`.
        """
        outlet = self._outlet
        if outlet is None:
            raise InvalidState("this call was answered or forgotten")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        if outlet.epoch != self._epoch:
            raise InvalidState(f"{outlet.name} was reset while a call waited for its answer")
        written = outlet._await_answer(self._slot, timeout)
        self._outlet = None
        outlet.calls -= 1
        del outlet._answers[self._slot]
        if written == _LOST:
            outlet.arena.give(self._slot)
            raise RequestLost(f"{outlet.name}: whoever received this call ended before answering; it was given up")
        reply = atomic.copy(outlet._bytes, self._offset, written)
        outlet.arena.give(self._slot)
        return reply

    def forget(self) -> None:
        """Nobody waits for this answer any more. Does nothing if it was taken or forgotten already."""
        outlet = self._outlet
        self._outlet = None
        if outlet is not None and outlet.epoch == self._epoch:
            outlet._forget_call(self._slot)

    def __del__(self) -> None:
        self.forget()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a call cannot be copied")


class Reservation:
    """Room for a message, to be written in place. A context manager; see `Outlet.reserve`."""

    __slots__ = ("_count", "_epoch", "_lent", "_offset", "_outlet", "_slot", "_view")

    _outlet: Outlet | None
    _offset: int
    _count: int
    _slot: int
    _epoch: int
    _lent: Lent
    _view: memoryview | None

    @property
    def view(self) -> memoryview:
        """The bytes, to be written. Raises InvalidState once the message was sent or cancelled."""
        if self._outlet is None or self._outlet.epoch != self._epoch:
            raise InvalidState("this reservation was sent or cancelled")
        if self._view is None:
            self._view = self._lent.view()
        return self._view

    def commit(self, count: int = -1) -> None:
        """Send the first `count` bytes; all if negative. Raises InvalidState while something made of the view exists.

        ValueError for more bytes than were reserved.
        """
        if count > self._count:
            raise ValueError(f"{self._count} bytes were reserved, not {count}")
        outlet = self._let_go()
        outlet._offer_message(self._offset, self._count if count < 0 else count, self._slot)
        outlet._show()

    def cancel(self) -> None:
        """Give the room back. Does nothing if the message was sent or cancelled already. Raises as `commit`."""
        if self._outlet is not None:
            self._let_go().arena.give(self._slot)

    def _let_go(self) -> Outlet:
        """Nobody can write any more: the outlet, whose descriptor is free again."""
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
        self._outlet = None
        self._lent.close()
        outlet.num_free += 1
        outlet.reserved -= 1
        return outlet

    def __del__(self) -> None:
        outlet = self._outlet
        if outlet is not None:
            self._outlet = None
            self._view = None
            outlet._orphans.append((self._epoch, self._slot, self._lent))

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
