# cython: nonecheck=False, initializedcheck=False
"""The driver half of a split virtqueue: makes chains available, reaps them used, keeps the free list [2.7.13, 2.7.14].

An exception may strike the interpreted core between any two steps: Ctrl-C, a signal handler. Whether a chain is in
flight is decided by one store, to `_capacity`; while what follows from it is incomplete, `_torn` says so, and the next
call works it out anew. Whether the device must be kicked is forgotten last of all. (Compiled, nothing strikes inside
these functions.)

The way of a chain: `add` (write descriptors, then the ring, then avail.idx) → `needs_kick` → served by the device →
`reap` (check the used element against the shadow, free the descriptors). The rules of both halves stand in `split`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from vqshm import spec
from vqshm.errors import (
    ChainTooLong,
    InvalidChain,
    InvalidState,
    InvalidUsedId,
    InvalidUsedLength,
    InvalidUsedRingIndex,
    QueueFull,
    UsedIdNotInFlight,
)
from vqshm.memory import atomic
from vqshm.ring import layout as ring_layout
from vqshm.ring.split import Half
from vqshm.ring.suppress import need_event

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region, Span
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.layout import SplitLayout

_FLAGS = ring_layout.FLAGS
_IDX = ring_layout.IDX
_RING = ring_layout.RING
_NO_NOTIFY = spec.VIRTQ_USED_F_NO_NOTIFY
_NEXT = spec.VIRTQ_DESC_F_NEXT
_WRITE = spec.VIRTQ_DESC_F_WRITE
_INDIRECT = spec.VIRTQ_DESC_F_INDIRECT

_OFFERING, _ACCEPTING = 1, 2  # what was interrupted; 0 is nothing

Buffer = tuple[int, int]  # guest address, bytes


class DriverQueue(Half):
    """The driver half: offers chains, reaps them used.

    `indirect_tables`: (guest address, entries per table): room for one indirect table per descriptor, used for chains
    of more than one buffer; None where INDIRECT_DESC was not negotiated. Not thread-safe.

    Raises GuestMemory if the tables are not in memory.
    """

    __slots__ = (
        "_avail_idx",
        "_capacity",
        "_entries",
        "_free",
        "_high",
        "_last",
        "_link",
        "_low",
        "_num_published",
        "_parts",
        "_published",
        "_table_base",
        "_table_window",
        "_tables",
        "_torn",
        "_used_seen",
        "in_flight",
        "last_used",
        "num_free",
        "written",
    )

    def __init__(
        self,
        memory: Memory,
        layout: SplitLayout,
        *,
        event_idx: bool = False,
        indirect_tables: tuple[int, int] | None = None,
        name: str = "queue",
    ) -> None:
        super().__init__(memory, layout, event_idx, name)
        self._avail_idx = 0  # position of the next chain to offer, u16
        self._published = 0  # the same, when the device was last shown it
        self._num_published = 0  # chains published since needs_kick was last asked
        self.last_used = 0  # position of the next used element to reap, u16
        self._used_seen = 0  # used.idx when last looked at
        self.written = 0  # bytes, of the chain reaped last
        self._low = self._high = 0  # bounds of the guest region last seen
        self._table_window: Region | None = None  # over the indirect tables
        self._table_base = self._entries = 0
        if indirect_tables is not None:
            self._table_base, self._entries = indirect_tables
            count = self._entries * spec.DESC_SIZE * self.size
            memory.check(self._table_base, count)
            self._table_window = memory.window(self._table_base, count, 8)
            self._tables = atomic.span_of(self._table_window)
        # The shadow: what this half must know about its own descriptors, where the device cannot write [rule 1].
        self._capacity = array("Q", bytes(8 * self.size))  # per head: 1 + writable bytes while in flight, else 0
        self._parts = array("H", bytes(2 * self.size))  # per head: its entries in the descriptor table
        self._last = array("H", bytes(2 * self.size))  # per head: the last of them
        self._link = array("H", bytes(2 * self.size))  # per descriptor: the next of its chain, or the next free one
        self._forget()

    def _forget(self) -> None:
        self._torn = _ACCEPTING
        for i in range(self.size):
            self._capacity[i] = 0
            self._link[i] = (i + 1) & self._mask
        self._free = 0
        self.num_free = self.size
        self.in_flight = 0  # chains
        self._torn = 0

    def _mend(self) -> None:
        """After an interruption: make whole what was torn."""
        self._make_whole()

    def _make_whole(self) -> None:
        """As `_mend`, for those who have more to mend than the ring."""
        self._mend_ring()
        self._torn = 0

    def _mend_ring(self) -> None:
        """What is in flight is known, and all else follows from it. `_torn` stays."""
        taken = bytearray(self.size)
        count = 0
        for head in range(self.size):
            if self._capacity[head]:
                count += 1
                index = head
                for _ in range(self._parts[head]):
                    taken[index] = 1
                    index = self._link[index]
        free = [index for index in range(self.size) if not taken[index]]
        for index, following in pairwise(free):
            self._link[index] = following
        self._free = free[0] if free else 0
        self.num_free = len(free)
        self.in_flight = count
        if self._torn == _OFFERING:
            self._avail_idx = (self.last_used + count) & 0xFFFF
        else:
            self.last_used = (self._avail_idx - count) & 0xFFFF

    def seek(self, position: int) -> None:
        """Go on at this position (u16), where both idx fields stand. Raises InvalidState if chains are in flight."""
        if position >> 16:
            raise ValueError(f"{self.name}: position {position} must lie in 0..65535")
        if self.in_flight:
            raise InvalidState(f"{self.name}: {self.in_flight} chains are in flight", in_flight=self.in_flight)
        self._avail_idx = self._published = position
        self.last_used = self._used_seen = position

    @property
    def next_head(self) -> int:
        """The token of the chain that is offered next, if there is room for one."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        return self._free

    def is_in_flight(self, head: int) -> bool:
        """Whether a chain was offered under this token, and not reaped yet."""
        return 0 <= head < self.size and self._capacity[head] != 0

    # -- offering ------------------------------------------------------------------------------------------------------

    def add(self, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = (), *, publish: bool = True) -> int:
        """Offer a chain of device-readable, then device-writable buffers; returns its token [2.7.13].

        Buffers are (guest address, bytes) pairs. The token is the chain's head index; `reap` returns it, and then it
        may be handed out again. With `publish=False` the device does not see the chain before `publish()`: for batches.

        Raises QueueFull, InvalidChain (no buffers, an empty one, more than the queue has), ChainTooLong, GuestMemory,
        AddressOverflow, QueueBroken.
        """
        if self.broken is not None:
            self._refuse()
        needed = self.room_for(len(readable) + len(writable))
        total = self._check_buffers(readable, 0)
        capacity = self._check_buffers(writable, total) - total
        head = self._free
        if self._in_table(len(readable) + len(writable)):
            self._fill_table(head, readable, writable)
            last = head
        else:
            last = self._fill_chain(readable, writable)
        self._offer(head, last, needed, capacity)
        self._torn = 0
        if publish:
            self.publish()
        return head

    def add_one(self, addr: int, length: int, flags: int) -> int:
        """Offer one buffer, which the caller knows to lie in memory, while a descriptor is free. Not published.

        `_torn` is left to the caller: it may have more to do.
        """
        head = self._free
        _put_descriptor(self._desc, head, addr, length, flags, 0)
        self._offer(head, head, 1, length if flags else 0)
        return head

    def add_pair(self, addr: int, length: int, answer: int, room: int) -> int:
        """As `add_one`, for a readable buffer and a writable one, while two descriptors are free."""
        head = self._free
        last = self._link[head]
        _put_descriptor(self._desc, head, addr, length, _NEXT, last)
        _put_descriptor(self._desc, last, answer, room, _WRITE, 0)
        self._offer(head, last, 2, room)
        return head

    def _offer(self, head: int, last: int, needed: int, capacity: int) -> None:
        """Note a chain in the shadow, and put its head into the ring. `_torn` is left to the caller."""
        if atomic.INTERRUPTIBLE:
            self._torn = _OFFERING
        self._parts[head] = needed
        self._last[head] = last
        atomic.put_u16(self._avail, _RING + 2 * (self._avail_idx & self._mask), head)
        self._capacity[head] = 1 + capacity  # from now on it is in flight
        self._free = self._link[last]
        self.num_free -= needed
        self.in_flight += 1
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF

    def room_for(self, count: int) -> int:
        """Descriptors that a chain of `count` buffers takes now. Raises QueueFull, InvalidChain."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        if count < 1 or count > self.size:
            raise InvalidChain(f"{self.name}: a chain of {count} buffers; 1 to {self.size} fit", limit=self.size)
        needed = 1 if self._in_table(count) else count
        if needed > self.num_free:
            raise QueueFull(
                f"{self.name}: {needed} descriptors wanted, {self.num_free} of {self.size} free; reap first, "
                f"{self.in_flight} chains are in flight",
                free=self.num_free,
                in_flight=self.in_flight,
            )
        return needed

    def _in_table(self, count: int) -> bool:
        """Whether a chain of so many buffers is written to an indirect table."""
        return 1 < count <= self._entries

    def publish(self) -> None:
        """Show the device every chain added so far, what they consist of before the idx that covers them [2.7.13.3]."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        atomic.store_u16(self._avail, _IDX, self._avail_idx)
        self._num_published += (self._avail_idx - self._published) & 0xFFFF
        self._published = self._avail_idx

    def _check_buffers(self, buffers: Sequence[Buffer], total: int) -> int:
        """`total` and the bytes of the buffers, each of which must lie in memory."""
        for address, length in buffers:
            if not isinstance(address, int):
                raise TypeError(f"{self.name}: a guest address is a whole number, not {address!r}")
            addr = address
            if length < 1:
                raise InvalidChain(f"{self.name}: a buffer of {length} bytes at {addr:#x}")
            if not (self._low <= addr < self._high and length <= self._high - addr):
                self._high = 0  # nothing is known
                self._low, self._high = self.memory.bounds(addr, length)
            total += length
            if total >> 32:
                raise ChainTooLong(f"{self.name}: a chain of more than {spec.MAX_CHAIN_BYTES} bytes")
        return total

    def _fill_chain(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Write descriptors along the free list, the head first; the index of the last one [2.7.13.1]."""
        remaining = len(readable) + len(writable)
        index = last = self._free
        flags = 0
        for buffers in (readable, writable):
            for addr, length in buffers:
                last = index
                remaining -= 1
                index = self._link[last]
                _put_descriptor(self._desc, last, addr, length, flags | (_NEXT if remaining else 0), index)
            flags = _WRITE
        return last

    def _fill_table(self, head: int, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> None:
        """Write the chain into the head's own indirect table, and one descriptor that refers to it [2.7.5.3]."""
        count = len(readable) + len(writable)
        first = head * self._entries
        position = flags = 0
        for buffers in (readable, writable):
            for addr, length in buffers:
                following = position + 1 if position + 1 < count else 0
                _put_descriptor(
                    self._tables, first + position, addr, length, flags | (_NEXT if following else 0), following
                )
                position += 1
            flags = _WRITE
        table = self._table_base + first * spec.DESC_SIZE
        _put_descriptor(self._desc, head, table, count * spec.DESC_SIZE, _INDIRECT, 0)

    # -- reaping -------------------------------------------------------------------------------------------------------

    def used(self) -> int:
        """Chains that can be reaped now. Raises InvalidUsedRingIndex if the device returned more than were offered."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        return self._look_used()

    def _look_used(self) -> int:
        """As `used`, of a half that is whole."""
        if self.broken is not None:
            self._refuse()
        seen = atomic.load_u16(self._used, _IDX)
        count = (seen - self.last_used) & 0xFFFF
        if count > self.in_flight:
            self._refuse_count(seen, count)
        self._used_seen = seen
        return count

    def _refuse_count(self, seen: int, count: int) -> NoReturn:
        raise self._violation(
            InvalidUsedRingIndex(
                f"used.idx {seen} is {count} ahead of position {self.last_used}, but {self.in_flight} chains "
                "are in flight",
                index=seen,
                limit=self.in_flight,
            )
        )

    def reap(self) -> tuple[int, int] | None:
        """The next chain the device returned: (token, bytes written), or None if there is none [2.7.14].

        Raises InvalidUsedRingIndex, InvalidUsedId, UsedIdNotInFlight, InvalidUsedLength (all PeerViolation),
        QueueBroken.
        """
        head = self.reap_head()
        self._torn = 0
        return None if head < 0 else (head, self.written)

    def reap_head(self) -> int:
        """As `reap`: the token, with the bytes written in `written`; -1 if there is none.

        `_torn` is left to the caller: it may have more to do.
        """
        head = self._peek()
        if head >= 0:
            self._accept(head)
        return head

    def peek_head(self) -> int:
        """As `reap_head`, but the chain stays in flight, and is returned again, until it is accepted."""
        return self._peek()

    def _peek(self) -> int:
        """As `peek_head`."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        if self.broken is not None:
            self._refuse()
        if self.last_used == self._used_seen and self._look_used() == 0:
            return -1
        offset = _RING + 8 * (self.last_used & self._mask)
        head = atomic.get_u32(self._used, offset)
        written = atomic.get_u32(self._used, offset + 4)
        if head >= self.size or written >= self._capacity[head]:
            self._refuse_used(head, written)
        self.written = written
        return head

    def _refuse_used(self, head: int, written: int) -> NoReturn:
        if head >= self.size:
            raise self._violation(InvalidUsedId(f"used id {head} of {self.size}", index=head, limit=self.size))
        if self._capacity[head] == 0:
            raise self._violation(UsedIdNotInFlight(f"used id {head} is not in flight", index=head))
        room = self._capacity[head] - 1
        raise self._violation(
            InvalidUsedLength(
                f"used id {head} claims {written} bytes written to {room} writable ones", index=head, limit=room
            )
        )

    def accept(self, head: int) -> None:
        """Take the chain that `peek_head` returned last: its descriptors go in front of the free list.

        Raises InvalidState for another one that is not in flight.
        """
        if head < 0 or head >= self.size or self._capacity[head] == 0:
            raise InvalidState(f"{self.name}: head {head} is not in flight", index=head)
        self._accept(head)
        self._torn = 0

    def _accept(self, head: int) -> None:
        """As `accept`, for a head that is in flight. `_torn` is left to the caller."""
        if atomic.INTERRUPTIBLE:
            self._torn = _ACCEPTING
        self._capacity[head] = 0  # from now on it is not in flight
        self._link[self._last[head]] = self._free
        self._free = head
        self.num_free += self._parts[head]
        self.in_flight -= 1
        self.last_used = (self.last_used + 1) & 0xFFFF

    def detach_unused(self) -> list[int]:
        """Take back every chain in flight: their tokens.

        Only when the device cannot touch them any more: after a reset.
        """
        tokens = [i for i in range(self.size) if self._capacity[i]]
        self._forget()
        return tokens

    # -- notifications -------------------------------------------------------------------------------------------------

    def needs_kick(self) -> bool:
        """Whether the device must be kicked for the chains published since this was last asked [2.7.10, 2.7.13.4]."""
        atomic.fence()  # avail.idx must be visible before the device's wish is read
        wanted = self._ask(self._published, self._num_published)
        self._num_published = 0
        return wanted

    def _ask(self, position: int, added: int) -> bool:
        """As `needs_kick`, for the `added` chains in front of this position. The caller has fenced."""
        if self.event_idx:
            event = atomic.load_u16(self._used, self._avail_event)
            if added > 0xFFFF:
                return True  # the position ran a full circle past the event
            return need_event(event, position, (position - added) & 0xFFFF)
        return added > 0 and not atomic.load_u16(self._used, _FLAGS) & _NO_NOTIFY

    def publish_and_ask(self) -> bool:
        """`publish`, and whether the device must be kicked for it: the two at once, as a message needs them.

        It is asked about the same chains again until the caller, who has kicked now, lets `_published` move on.
        """
        old, new = self._published, self._avail_idx
        atomic.store_u16(self._avail, _IDX, new)
        atomic.fence()  # avail.idx must be visible before the device's wish is read
        if not self.event_idx or self._num_published:
            return self._ask(new, self._num_published + ((new - old) & 0xFFFF))
        return need_event(atomic.load_u16(self._used, self._avail_event), new, old)

    def enable_notification(self, after: int = 1) -> bool:
        """Ask to be called when `after` more chains were used, then look again: True if so many already are.

        `after` is at most the number of chains in flight; without EVENT_IDX it is always 1 [2.7.7.1].
        """
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        after = max(1, min(after, self.in_flight)) if self.event_idx else 1
        if self.event_idx:
            position = (self.last_used + after - 1) & 0xFFFF
            atomic.store_u16(self._avail, self._used_event, position)
        else:
            atomic.store_u16(self._avail, _FLAGS, 0)
        atomic.fence()  # the wish must be visible before used.idx is read
        return self.used() >= after

    def disable_notification(self) -> None:
        """Ask not to be called. With EVENT_IDX a stale `used_event` says so already [2.7.7]."""
        if not self.event_idx:
            atomic.store_u16(self._avail, _FLAGS, spec.VIRTQ_AVAIL_F_NO_INTERRUPT)


def _put_descriptor(table: Span, index: int, addr: int, length: int, flags: int, following: int) -> None:
    """Write one table entry; nothing here orders it: `publish` does."""
    atomic.put_u64(table, index * 16, addr)
    atomic.put_u64(table, index * 16 + 8, length | (flags << 32) | (following << 48))
