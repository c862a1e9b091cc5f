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

An exception may strike between any two steps (compiled: while the driver is called, which may run Python code). A
message is received when the position moves on, the last step before which nothing has happened; what it was lies in
`_got` by then. A call that is interrupted later has handed out nothing: the next call settles what it left
(`_count_left`), and hands that out first: bytes from `_kept`;
what was lent, and nobody has looked at, is taken again (`_replays`).

For a lane whose receiver may have a successor there is `ResumingInlet`.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, NoReturn

from vqshm import spec
from vqshm.errors import InvalidState, NoMessage, PeerViolation, RuleError, VqshmError
from vqshm.lane import serving
from vqshm.lane.keeper import ALONE
from vqshm.lane.loan import Loan
from vqshm.memory import atomic
from vqshm.memory.lent import Lent, new_lent
from vqshm.notify.eventfd import ring
from vqshm.notify.spin import Pace, now
from vqshm.notify.wait import Deadline
from vqshm.ring import layout as ring_layout
from vqshm.ring.split_device import DeviceQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        "_back",
        "_from",
        "_got",
        "_head",
        "_held_bytes",
        "_in_doubt",
        "_kept",
        "_layout",
        "_left",
        "_lent_heads",
        "_most_held",
        "_most_held_bytes",
        "_orphans",
        "_shown",
        "_told",
        "_waiting",
        "attempts",
        "bed",
        "bell",
        "bytes_in",
        "calls",
        "calls_suppressed",
        "epoch",
        "keeper",
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
        self._waiting = 0  # the thread that does
        self._told = 0  # position up to which the driver was told what was given back
        self._held_bytes = 0  # given back since then
        self._in_doubt = False  # the driver wants to be called, and perhaps was not
        self._kept: list[bytes] = []  # received, given back, and still to be handed out
        self._got: list[Any] | None = None  # what is being received: bytes, a loan, or heads
        self._from = 0  # how far this had come (`_position`) when that began
        self._head = -1  # of what is being taken again
        self._back: Loan | None = None  # is being given back
        self._lent_heads = bytearray(layout.size)  # 1: lent out
        self._orphans: list[Loan] = []  # nobody will give them back
        self._left = False  # some of them were not looked at, or something is kept or to be taken again
        self.attempts = 1  # for which time the last message was received, over deaths; see `ResumingInlet`
        self.epoch = 0  # restarts so far
        self.bell = bell
        self.keeper = keeper
        self.bed: Bed | None = None  # what to sleep on, once the keeper has made it
        self.pace = Pace()
        self.ready = True  # whether messages can come; if not, `get_ready` says why
        self.messages = self.bytes_in = self.calls = self.calls_suppressed = self.waits = 0
        self._shown = 0  # messages when the counters were shown

    def restart(self, event_idx: bool, indirect: bool, *, ready: bool = True) -> None:
        """Begin anew with a driver that has zeroed the rings, and these features; `ready` is set last."""
        if self._got is not None:
            self._settle(self._got)
        self._replays.clear()
        self.indirect = indirect
        self.next_avail = self.next_used = self._num_added = 0
        self.bind(self.memory, self._layout, event_idx)
        self._orphans.clear()
        self._back = None
        for head in range(self.size):
            self._lent_heads[head] = 0
        self._told = self._held_bytes = 0
        self._in_doubt = False
        self.epoch += 1
        self.broken = None
        self.ready = ready

    @property
    def replayed(self) -> bool:
        """Whether the last message came again: a receiver that died had taken it; see `ResumingInlet`."""
        return self.attempts > 1

    def seek(self, next_avail: int, next_used: int) -> None:
        """As `DeviceQueue.seek`: everything up to there is known to the driver."""
        DeviceQueue.seek(self, next_avail, next_used)
        self._told = next_used

    @property
    def lent(self) -> int:
        """Messages that are lent out."""
        return bytes(self._lent_heads).count(1) if self.size else 0

    def available(self) -> int:
        """Messages that can be received now, those among them that an interrupted call left."""
        left = self._count_left() if self._is_torn() else 0
        return self._look() + left

    # -- receiving -----------------------------------------------------------------------------------------------------

    def recv(self, timeout: float | None = None) -> bytes:
        """The next message. Waits for it at most `timeout` seconds (None: for ever).

        Raises NoMessage (a QueueEmpty and a TimeoutError), EndOfMessages once the sender has left and everything was
        received, the PeerViolation of a driver that breaks a rule, QueueBroken, InvalidState, ValueError.
        """
        if self._await_message(timeout):
            return self._next_left()
        head = self._claim()
        data = self._copy_message(head)
        if atomic.INTERRUPTIBLE:
            self._from = self.next_avail
            self._got = [data]
        self.next_avail = (self.next_avail + 1) & 0xFFFF  # received
        if self._pass_on(head, len(data)):
            return self._tell_first(data, timeout)
        if atomic.INTERRUPTIBLE:
            self._got = None
        return data

    def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:
        """1 to `limit` messages: all that are there, after waiting for the first. Raises as `recv`.

        Ends early once they have as many bytes as one message may have: a driver may name the same memory often.
        """
        if limit < 1:
            raise ValueError(f"cannot receive {limit} messages: at least 1")
        if self._await_message(timeout):
            return self._many_left(limit)
        count = self._count_there(limit)
        messages: list[bytes] = []
        enough = self.bytes_in + self.limit
        if atomic.INTERRUPTIBLE:
            self._from = self.next_avail
            self._got = messages
        try:
            while count > 0 and self.next_avail != self._avail_seen and self.bytes_in < enough:
                head = self._claim()
                data = self._copy_message(head)
                messages.append(data)
                self.next_avail = (self.next_avail + 1) & 0xFFFF  # received
                if self._pass_on(head, len(data)):
                    messages = self._tell_many(messages)
                count -= 1
        except PeerViolation:
            if not messages:  # else those that were good come first; the next call says that the lane is broken
                raise
        if not messages:  # others took them, while the driver was told
            return self.recv_many(limit, timeout)
        if atomic.INTERRUPTIBLE:
            self._got = None
        return messages

    def recv_view(self, timeout: float | None = None) -> Loan:
        """The next message in place, until it is given back: `with inlet.recv_view() as view: …`. Raises as `recv`.

        A message that lies in several buffers is copied into one. Its sender may still change what is looked at. A
        loan that is dropped before anybody looked at it was not received: the message is handed out again.
        """
        if self._await_message(timeout):
            return self._lend_left()
        loan = self._lend(self._claim())
        if atomic.INTERRUPTIBLE:
            self._from = self.next_avail
            self._got = [loan]
        self.next_avail = (self.next_avail + 1) & 0xFFFF  # received
        return self._hand_out(loan)

    def serve(self, answer: Callable[[memoryview], Any]) -> None:
        """Answer each call with what `answer` makes of its message, until the sender has left. Raises as `recv`.

        What is no call is handed to `answer`, too; its answer then must be empty or None.
        """
        serving.serve(self, answer)

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]  # a lane yields messages, not chains
        """Messages as they come, until the sender has left."""
        return serving.messages(self)

    # -- the steps of receiving ----------------------------------------------------------------------------------------

    def _count_there(self, limit: int) -> int:
        """How many messages are there, up to `limit`."""
        count = (self._avail_seen - self.next_avail) & 0xFFFF
        if count < limit:
            count = self._look()
        return min(count, limit)

    def _copy_message(self, head: int) -> bytes:
        """The bytes of a message that was claimed."""
        if self._fetch(head) and not self.writable:
            return atomic.copy(self._bytes, self.addr - self._low, self.length)
        return self._copy_chain(head)

    def _copy_chain(self, head: int) -> bytes:
        """As `_copy_message`, for any chain: all of it is fetched again, and nothing of the first look is kept."""
        chain = self.chain(head)
        if chain.writable_bytes > 1:
            self._held_bytes = self._most_held_bytes  # somebody waits for this one, if only for an empty answer
        data: bytes = chain.reader().read()
        return data

    def _pass_on(self, head: int, length: int) -> bool:
        """Give a message back that was received as bytes; whether the driver is to be told now."""
        self.messages += 1
        self.bytes_in += length
        self._return(head, 0)
        self._held_bytes += length
        return self._is_much_held()

    def _is_much_held(self) -> bool:
        """Whether the driver is to be told now of what was given back."""
        held = (self.next_used - self._told) & 0xFFFF
        return held >= self._most_held or self._held_bytes >= self._most_held_bytes

    def _tell_first(self, data: bytes, timeout: float | None) -> bytes:
        """The message that was received, once the driver was told: that runs Python code, which may raise."""
        if not atomic.INTERRUPTIBLE:
            try:
                self.tell()
            except BaseException:
                self._keep([data])
                raise
            return data
        self._keep([data])
        self.tell()
        if not self._kept:  # somebody took it meanwhile
            return self.recv(timeout)
        data = self._kept[0]
        del self._kept[0]
        return data

    def _tell_many(self, messages: list[bytes]) -> list[bytes]:
        """As `_tell_first`, for several: those that are left."""
        if not atomic.INTERRUPTIBLE:
            try:
                self.tell()
            except BaseException:
                self._keep(messages)
                raise
            return messages
        self._keep(messages)
        self.tell()
        messages = self._kept[:]
        self._take_kept(messages)
        return messages

    def _keep(self, messages: list[bytes]) -> None:
        """They are still to be handed out."""
        self._left = True
        if not atomic.INTERRUPTIBLE:
            self._kept = messages + self._kept
        elif self._got is not None:
            self._settle(self._got)

    def _take_kept(self, messages: list[bytes]) -> None:
        """They, the first of those that were kept, are about to be handed out."""
        if atomic.INTERRUPTIBLE:
            self._from = self._position()
            self._got = messages
        del self._kept[: len(messages)]

    def _new_loan(self, head: int, attempts: int) -> Loan:
        """A loan of nothing yet. By `__new__`: compiled, a constructor call costs ten times as much."""
        loan = Loan.__new__(Loan)
        loan._inlet = None
        loan._head = head
        loan._epoch = self.epoch
        loan._number = self.messages
        loan._chain = None
        loan._view = None
        loan._seen = False
        loan._written = loan._room = loan._answer = 0
        loan.attempts = attempts
        return loan

    def _lend(self, head: int) -> Loan:
        """A message that was claimed, in place; nobody has it yet."""
        loan = self._new_loan(head, self.attempts)
        self.single = self._fetch(head)
        if self.single and not self.writable:
            loan._count = self.length
            loan._lent = new_lent(self._window, self.addr - self._low, self.length, readonly=True)
        elif not self.single and self._fetch_call(head):
            loan._count = self.length
            loan._room = self.answer_room
            loan._answer = self.answer_addr
            loan._lent = new_lent(self._window, self.addr - self._low, self.length, readonly=True)
        else:
            loan._chain = self.chain(head)
            loan._count = loan._chain.readable_bytes
            loan._room = loan._chain.writable_bytes
            loan._lent = self._lend_chain(loan._chain)
        return loan

    def _hand_out(self, loan: Loan) -> Loan:
        """Whoever asked for it has it now."""
        self._lent_heads[loan._head] = 1
        loan._inlet = self
        self.messages += 1
        self.bytes_in += loan._count
        if atomic.INTERRUPTIBLE:
            self._got = None
        return loan

    def _lend_chain(self, chain: DescriptorChain) -> Lent:
        """The message of a chain: in place if it is one piece, else a copy."""
        pieces = [d for d in chain.readable() if d.len]
        if len(pieces) == 1 and self._holds(pieces[0].addr, pieces[0].len):
            return new_lent(self._window, pieces[0].addr - self._low, pieces[0].len, readonly=True)
        copy = bytearray(chain.reader().read())
        return new_lent(atomic.Region(copy), 0, len(copy), readonly=True)

    def done(self) -> None:
        """What was received is done with: give it back now, not by and by."""
        self.tell()

    def tell(self) -> None:
        """Show the driver everything that was given back, and call it if it waits for that."""
        if self._orphans:
            self.collect()
        if atomic.INTERRUPTIBLE and self._giving == self.next_used:
            self._mend()
        if (self.next_used == self._told and not self._in_doubt) or not self.ready:
            return
        self._publish()
        told = self.next_used
        if self._is_wanted((told - self._told) & 0xFFFF) or self._in_doubt:
            self._in_doubt = True
            self._told = told
            self.calls += 1
            ring(self.bell)
            self._in_doubt = False
        else:
            self._told = told
            self.calls_suppressed += 1
        self._held_bytes = 0
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

    # -- giving back what was lent -------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Give back the messages that nobody looks at any more, though nobody said so; those unseen come again."""
        if atomic.INTERRUPTIBLE:
            if self._giving == self.next_used:
                self._mend()
            if self._back is not None:
                self._finish_giving(self._back)
            if self._got is not None:
                self._settle(self._got)
        for loan in sorted(self._orphans, key=_number_of, reverse=True):
            if loan._epoch == self.epoch:
                if loan._seen and loan._lent.in_use:
                    continue
                if loan._seen:
                    loan._lent.close()
                    self._give(loan)
                else:
                    self._put_back(loan)
            self._orphans.remove(loan)

    def _take_back(self, loan: Loan) -> None:
        """Give a loan back; the driver is shown it soon."""
        self._give(loan)
        if self._is_much_held():
            self.tell()

    def _give(self, loan: Loan) -> None:
        """Give a loan back, which may have been done."""
        if atomic.INTERRUPTIBLE:
            if self._giving == self.next_used:
                self._mend()
            if self._back is not None:
                self._finish_giving(self._back)
            if loan._inlet is not None:
                self._back = loan  # from now on it is given back
                self._finish_giving(loan)
        else:
            self._finish_giving(loan)

    def _finish_giving(self, loan: Loan) -> None:
        """As `_give`; what was done of it is not done again."""
        if loan._epoch == self.epoch and loan._head >= 0:
            if self.ready and (not atomic.INTERRUPTIBLE or self._shadow[loan._head]):
                self._return(loan._head, loan._written)
                self._held_bytes += loan._count
            if loan._room > 0:
                self._held_bytes = self._most_held_bytes  # somebody waits for this one
            self._lent_heads[loan._head] = 0
        loan._inlet = None
        if atomic.INTERRUPTIBLE:
            self._back = None

    # -- after an interruption -----------------------------------------------------------------------------------------

    def _position(self) -> int:
        """How far receiving has come, u16: one further for each message, wherever that was taken from."""
        return (self.next_avail - len(self._replays) - len(self._kept)) & 0xFFFF

    def _is_torn(self) -> bool:
        """Whether something is left to be done, or to be handed out."""
        return self._left or (
            atomic.INTERRUPTIBLE
            and (
                self._got is not None
                or self._back is not None
                or len(self._replays) + len(self._kept) + len(self._orphans) > 0
                or self._held_bytes >= self._most_held_bytes
            )
        )

    def _count_left(self) -> int:
        """How many messages are to be handed out before those that come next in the ring."""
        self._left = False  # before the look: to drop a loan says so again
        self.collect()
        if atomic.INTERRUPTIBLE and self._held_bytes >= self._most_held_bytes:
            self.tell()
        count = len(self._kept) + (len(self._replays) if self.ready else 0)
        if count:
            self._left = True
        return count

    def _settle(self, got: list[Any]) -> None:
        """What was received and not handed out is to be handed out again."""
        del got[(self._position() - self._from) & 0xFFFF :]
        if got and isinstance(got[0], bytes):
            self._pass_on_again()
        while got:
            self._put_back(got[len(got) - 1])
            del got[(self._position() - self._from) & 0xFFFF :]
        self._head = -1
        self._got = None

    def _pass_on_again(self) -> None:
        """Give back the message that was received last, unless that was done."""
        head = self._head
        if head < 0 and self._claimed != self.next_avail:  # else the next one was being received already
            head = self._taken[(self.next_avail - 1) & self._mask]
        if head >= 0 and self._shadow[head] and self.ready:
            self._return(head, 0)

    def _put_back(self, thing: Any) -> None:
        """Bytes, a loan, or a head are what comes next."""
        head: int = -1
        data: bytes | None = None
        if isinstance(thing, Loan):
            loan = thing
            loan._inlet = None
            head = loan._head
            if head < 0:
                data = bytes(loan._lent.view())
            else:
                loan._lent.close()
                self._lent_heads[head] = 0
        elif isinstance(thing, bytes):
            data = thing
        else:
            head = thing
        if data is not None:
            self._kept.insert(0, data)
        elif head not in self._replays:
            self._replays.append(head)

    def _next_left(self) -> bytes:
        """The first message that an interrupted call has left."""
        if self._replays and self.ready:
            self._keep_replay()
        data = self._kept[0]
        del self._kept[0]
        return data

    def _many_left(self, limit: int) -> list[bytes]:
        """Up to `limit` of them."""
        if self._replays and self.ready:
            self._keep_replay()
        messages = self._kept[:limit]
        self._take_kept(messages)
        if atomic.INTERRUPTIBLE:
            self._got = None
        return messages

    def _keep_replay(self) -> None:
        """Receive a message that is to be taken again, and keep it."""
        last = len(self._replays) - 1
        head: int = self._replays[last]
        data = self._copy_message(head)
        self._from = self._position()
        self._got = [data]
        self._head = head
        del self._replays[last]  # received
        self._return(head, 0)
        self._held_bytes += len(data)
        self._settle(self._got)
        if self._is_much_held():
            self.tell()

    def _lend_left(self) -> Loan:
        """The first of them, in place where it still lies there."""
        last = len(self._replays) - 1 if self.ready else -1
        loan = self._lend(self._replays[last]) if last >= 0 else self._lend_copy(self._kept[0])
        self._from = self._position()
        self._got = [loan]
        if last >= 0:
            del self._replays[last]  # received
            self._lent_heads[loan._head] = 1
        else:
            del self._kept[0]
        loan._inlet = self
        self._got = None
        return loan

    def _lend_copy(self, data: bytes) -> Loan:
        """A message that was given back, as if it still lay in the ring."""
        loan = self._new_loan(-1, 1)
        loan._count = len(data)
        loan._lent = new_lent(atomic.Region(bytearray(data)), 0, len(data), readonly=True)
        return loan

    def _write_reply(self, chain: DescriptorChain | None, addr: int, data: Any, count: int) -> None:
        """Store the reply in the device-writable part of a chain, which has room for it; None: at `addr`."""
        if chain is None and self._holds(addr, count):
            atomic.fill(self._bytes, addr - self._low, data, count)
        elif chain is not None:
            chain.writer().write_all(data)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _await_message(self, timeout: float | None) -> bool:
        """Return when there is a message; whether an interrupted call has left it. Raises as `recv`."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        if (
            not self.ready
            or self._waiting
            or self._is_torn()
            or (self.next_avail == self._avail_seen and self._look() == 0)
        ):
            return self._wait(timeout)
        return False

    def _wait(self, timeout: float | None) -> bool:
        """As `_await_message`, when there was none at first sight."""
        self._check_alone()
        if self._is_torn() and self._count_left() > 0:
            return True
        self._waiting = get_ident() if atomic.INTERRUPTIBLE else 1
        try:
            self._wait_long(timeout)
        finally:
            self._waiting = 0
        return self._is_torn() and self._count_left() > 0

    def _check_alone(self) -> None:
        """Raise InvalidState if another thread waits here; our own mark was left by an interrupted wait."""
        if self._waiting and (not atomic.INTERRUPTIBLE or self._waiting != get_ident()):
            raise InvalidState(f"{self.name}: another thread waits for a message here")

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


def _number_of(loan: Loan) -> int:
    """When a message was lent."""
    return loan._number
