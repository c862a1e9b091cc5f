# cython: nonecheck=False, initializedcheck=False
"""Inlet: the end of a lane where messages come out: a device half whose chains are messages [2.7.8, 2.7.13].

The way of a message: a head from the available ring → its descriptor, fetched once and checked → the bytes are copied
(or lent in place, `recv_view`) → the head goes into the used ring → now and then the driver is shown how far that ring
has come, and called if it wants to be.

"Now and then": whenever 16 messages or 16 KiB (an eighth of a small arena, a quarter of a small
queue) were given back, and always before this side waits. Each time costs a
full fence, and the line of used.idx travels to the other processor and back; so doing it seldom halves the cost of a
small message.

A message of one device-readable descriptor takes the fast path. Any other chain that the specification allows (from a
driver of somebody else, or a call, whose answer needs room) is fetched and checked as a `DescriptorChain`.

For a lane whose receiver may have a successor there is `ResumingInlet`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

from vqshm import spec
from vqshm.errors import InvalidState, MessageTooLarge, NoMessage, PeerViolation, RuleError, VqshmError
from vqshm.lane import serving
from vqshm.lane.keeper import ALONE
from vqshm.memory import atomic
from vqshm.memory.lent import Lent, new_lent
from vqshm.notify.eventfd import ring
from vqshm.notify.spin import Pace, now
from vqshm.notify.wait import Deadline
from vqshm.ring import layout as ring_layout
from vqshm.ring.split_device import DeviceQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from vqshm.lane.keeper import InletKeeper
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.notify import Notifier
    from vqshm.notify.bed import Bed
    from vqshm.ring.chain import DescriptorChain
    from vqshm.ring.inflight import Inflight
    from vqshm.ring.layout import SplitLayout

_IDX = ring_layout.IDX
_SHOW_EVERY = 4096  # messages
_HELD_MESSAGES = 16  # given back without telling the driver, at most
_HELD_BYTES = 1 << 14  # likewise


class Inlet(DeviceQueue):
    """The device's end of a lane: `bell` calls the driver; `area_bytes` is the size of the driver's arena.

    A message of more than `limit` bytes breaks the lane, as one does that names memory outside of it.

    For one thread at a time: who comes while another one waits gets InvalidState.
    """

    __slots__ = (
        "_held",
        "_held_bytes",
        "_layout",
        "_most_held",
        "_most_held_bytes",
        "_orphans",
        "_shown",
        "_waiting",
        "attempts",
        "bed",
        "bell",
        "bytes_in",
        "calls",
        "calls_suppressed",
        "epoch",
        "keeper",
        "lent",
        "messages",
        "pace",
        "ready",
        "waits",
    )

    def __init__(
        self,
        memory: Memory,
        layout: SplitLayout,
        bell: Notifier,
        keeper: InletKeeper = ALONE,
        *,
        event_idx: bool = True,
        indirect: bool = True,
        area_bytes: int = _HELD_BYTES << 3,
        limit: int = spec.MAX_CHAIN_BYTES,
        inflight: Inflight | None = None,
        name: str = "lane",
    ) -> None:
        super().__init__(memory, layout, event_idx=event_idx, indirect=indirect, inflight=inflight, name=name)
        self.limit = limit
        self._most_held_bytes = min(_HELD_BYTES, area_bytes >> 3)
        self._layout = layout
        self._most_held = max(1, min(_HELD_MESSAGES, layout.size >> 2))
        self._waiting = False  # somebody does
        self._held = self._held_bytes = 0  # given back since the driver was last told
        self._orphans: list[tuple[int, int, int, Lent]] = []  # lent, and nobody will give them back: see `Loan`
        self.lent = 0  # messages that are lent out
        self.attempts = 1  # for which time the last message was received, over deaths; see `ResumingInlet`
        self.epoch = 0  # restarts so far
        self.bell = bell
        self.keeper = keeper
        self.bed: Bed | None = None  # what to sleep on, once the keeper has made it
        self.pace = Pace()
        self.ready = True  # whether messages can come; if not, `get_ready` says why
        self.messages = self.bytes_in = self.calls = self.calls_suppressed = self.waits = 0
        self._shown = 0  # messages when the counters were shown

    def restart(self, event_idx: bool, indirect: bool) -> None:
        """Begin anew with a driver that has zeroed the rings, and these features."""
        self.indirect = indirect
        self.next_avail = self.next_used = self._num_added = 0
        self.bind(self.memory, self._layout, event_idx)
        self._held = self._held_bytes = self.lent = 0
        self._orphans.clear()
        self.epoch += 1
        self.broken = None
        self.ready = True

    @property
    def replayed(self) -> bool:
        """Whether the last message came again: a receiver that died had taken it; see `ResumingInlet`."""
        return self.attempts > 1

    # -- receiving -----------------------------------------------------------------------------------------------------

    def recv(self, timeout: float | None = None) -> bytes:
        """The next message. Waits for it at most `timeout` seconds (None: for ever).

        Raises NoMessage (a QueueEmpty and a TimeoutError), EndOfMessages once the sender has left and everything was
        received, the PeerViolation of a driver that breaks a rule, QueueBroken, InvalidState, ValueError.
        """
        self._await_message(timeout)
        return self._receive()

    def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:
        """1 to `limit` messages: all that are there, after waiting for the first. Raises as `recv`.

        Ends early once they have as many bytes as one message may have: a driver may name the same memory often.
        """
        if limit < 1:
            raise ValueError(f"cannot receive {limit} messages: at least 1")
        self._await_message(timeout)
        count = (self._avail_seen - self.next_avail) & 0xFFFF
        if count < limit:
            count = self._look()
        count = min(count, limit)
        messages: list[bytes] = []
        enough = self.bytes_in + self.limit
        try:
            while count > 0 and self.next_avail != self._avail_seen and self.bytes_in < enough:
                messages.append(self._receive())
                count -= 1
        except PeerViolation:
            if not messages:  # else those that were good come first; the next call says that the lane is broken
                raise
        return messages

    def recv_view(self, timeout: float | None = None) -> Loan:
        """The next message in place, until it is given back: `with inlet.recv_view() as view: …`. Raises as `recv`.

        A message that lies in several buffers is copied into one. Its sender may still change what is looked at.
        """
        self._await_message(timeout)
        return self._lend(self.pop_single())

    def _lend(self, head: int) -> Loan:
        """A message that was taken, and fetched if it is a `single` buffer, in place."""
        loan = Loan.__new__(Loan)
        loan._inlet = None
        loan._head = head
        loan._epoch = self.epoch
        loan._chain = None
        loan._view = None
        loan._written = loan._room = loan._answer = 0
        loan.attempts = self.attempts
        if self.single and not self.writable:
            length = self.length
            loan._lent = new_lent(self._window, self.addr - self._low, length, readonly=True)
        elif not self.single and self._fetch_call(head):
            length = self.length
            loan._room = self.answer_room
            loan._answer = self.answer_addr
            loan._lent = new_lent(self._window, self.addr - self._low, length, readonly=True)
        else:
            loan._chain = self.chain(head)
            length = loan._chain.readable_bytes
            loan._room = loan._chain.writable_bytes
            loan._lent = self._lend_chain(loan._chain)
        loan._count = length
        loan._inlet = self
        self.messages += 1
        self.bytes_in += length
        self.lent += 1
        return loan

    def serve(self, answer: Callable[[memoryview], Any]) -> None:
        """Answer each call with what `answer` makes of its message, until the sender has left. Raises as `recv`.

        What is no call is handed to `answer`, too; its answer then must be empty or None.
        """
        serving.serve(self, answer)

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]  # a lane yields messages, not chains
        """Messages as they come, until the sender has left."""
        return serving.messages(self)

    # -- the steps of receiving ----------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        """Take a message, which is there, as bytes, and give it back."""
        head = self.pop_single()
        if not self.single or self.writable:
            return self._receive_chain(head)
        length = self.length
        data = atomic.copy(self._bytes, self.addr - self._low, length)
        self.messages += 1
        self.bytes_in += length
        self._give_back(head, 0, length)
        return data

    def _receive_chain(self, head: int) -> bytes:
        """As `_receive`, for any chain: it is fetched again, all of it, and nothing of the first look is kept."""
        chain = self.chain(head)
        data = chain.reader().read()
        self.messages += 1
        self.bytes_in += len(data)
        self._give_back(head, 0, len(data))
        if chain.writable_bytes > 1:
            self.tell()  # somebody waits for this one, if only for an empty answer
        return data

    def _lend_chain(self, chain: DescriptorChain) -> Lent:
        """The message of a chain: in place if it is one piece, else a copy."""
        pieces = [d for d in chain.readable() if d.len]
        if len(pieces) == 1 and self._holds(pieces[0].addr, pieces[0].len):
            return new_lent(self._window, pieces[0].addr - self._low, pieces[0].len, readonly=True)
        copy = bytearray(chain.reader().read())
        return new_lent(atomic.Region(copy), 0, len(copy), readonly=True)

    def _give_back(self, head: int, written: int, length: int) -> None:
        """Return a chain; the driver is shown it soon."""
        self._return(head, written)
        self._held += 1
        self._held_bytes += length
        if self._held >= self._most_held or self._held_bytes >= self._most_held_bytes:
            self.tell()

    def done(self) -> None:
        """What was received is done with: give it back now, not by and by."""
        self.tell()

    def tell(self) -> None:
        """Show the driver everything that was given back, and call it if it waits for that."""
        if self._orphans:
            self.collect()
        if self._held == 0 or not self.ready:
            return
        self._held = self._held_bytes = 0
        self.publish_used()
        if self.needs_notification():
            self.calls += 1
            ring(self.bell)
        else:
            self.calls_suppressed += 1
        if self.messages - self._shown >= _SHOW_EVERY:
            self._shown = self.messages
            self.keeper.show_counts()

    def __reduce__(self) -> NoReturn:
        raise TypeError("the end of a lane cannot be copied")

    def _violation(self, error: RuleError) -> VqshmError:
        violation = super()._violation(error)
        self.ready = False
        self.keeper.broke(violation)
        return violation

    def collect(self) -> None:
        """Give back the messages that nobody looks at any more, though nobody said so."""
        for orphan in self._orphans[:]:
            epoch, head, written, lent = orphan
            if not lent.in_use:
                self._orphans.remove(orphan)
                lent.close()
                if epoch == self.epoch:
                    self.lent -= 1
                    if self.ready:
                        self._return(head, written)
                        self._held += 1

    def _write_reply(self, chain: DescriptorChain | None, addr: int, data: Any, count: int) -> None:
        """Store the reply in the device-writable part of a chain, which has room for it; None: at `addr`."""
        if chain is None and self._holds(addr, count):
            atomic.fill(self._bytes, addr - self._low, data, count)
        elif chain is not None:
            chain.writer().write_all(data)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _await_message(self, timeout: float | None) -> None:
        """Return when there is a message. Raises as `recv`."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        if not self.ready or self._waiting or (self.next_avail == self._avail_seen and self._look() == 0):
            self._wait(timeout)

    def _wait(self, timeout: float | None) -> None:
        """As `_await_message`, when there was none at first sight."""
        if self._waiting:
            raise InvalidState(f"{self.name}: another thread waits for a message here")
        self._waiting = True
        try:
            self._wait_long(timeout)
        finally:
            self._waiting = False

    def _wait_long(self, timeout: float | None) -> None:
        if self.ready and (timeout is None or timeout > 0):
            self.tell()
            if self.pace.look(atomic.region_of(self._avail), _IDX, self.next_avail) and self._look() > 0:
                return
        deadline = Deadline(timeout)
        while True:
            if not self.ready:
                self.keeper.get_ready(deadline)
            if self.available() > 0:
                return
            self.tell()
            if self.keeper.lie_down(deadline):
                if self._doze():
                    return
                awake = self.keeper.get_up(deadline)
            else:
                awake = self.keeper.sleep(deadline)
            if not awake:
                raise NoMessage(f"{self.name}: no message came in time; {self.keeper.stalled()}")

    def _doze(self) -> bool:
        """Sleep on the bed that was made; then look for a message, before anybody does anything else."""
        if self.bed is None:
            return False
        start = now()
        there = self.bed.doze(atomic.region_of(self._avail), _IDX, self.next_avail)
        self.disable_notification()
        self.pace.slept(now() - start)
        return there and self._look() > 0


class Loan:
    """A message that is looked at in place. A context manager; see `Inlet.recv_view`.

    `attempts`: for which time it was received; see `ResumingInlet`.
    """

    __slots__ = (
        *("_answer", "_chain", "_count", "_epoch", "_head", "_inlet", "_lent", "_room", "_view", "_written"),
        "attempts",
    )

    _inlet: Inlet | None
    _head: int
    _count: int
    _epoch: int
    _chain: DescriptorChain | None  # where there are more buffers than one to read and one to write
    _room: int
    _answer: int  # where it goes, if there is no `_chain`
    _written: int
    _lent: Lent
    _view: memoryview | None
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
        if self._view is None:
            self._view = self._lent.view()
        return self._view

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

    def release(self) -> None:
        """Give the message back, with the reply if there is one. May be called twice.

        Raises InvalidState while something made from the view still exists; once that is gone the message goes back by
        itself, or at the next `release`.
        """
        inlet = self._inlet
        if inlet is None:
            return
        if self._view is not None:
            try:
                self._view.release()
            except BufferError as error:
                raise InvalidState(f"something made from the view of this message still exists: {error}") from None
            if self._lent.exports:
                raise InvalidState("a part of the view of this message still exists: delete or release it")
        self._inlet = None
        self._lent.close()
        if inlet.epoch == self._epoch:
            inlet.lent -= 1
            if inlet.ready:
                inlet._give_back(self._head, self._written, self._count)
                if self._room:  # somebody waits for this one
                    inlet.tell()

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
        inlet = self._inlet
        if inlet is not None:
            self._inlet = None
            self._view = None
            inlet._orphans.append((self._epoch, self._head, self._written, self._lent))
