"""The split virtqueue: its device half and its driver half, over one guest memory [2.7].

    driver owns                                           device owns
    descriptor table   addr len flags next
    available ring     flags idx ring[] used_event        used ring   flags idx ring[] avail_event

Each half writes only what it owns, publishes with one release store of its idx, and reads the other's idx with one
acquire load; positions run freely through 0..65535 and are masked only to find a slot. So neither half ever waits for
the other.

Two rules:

1. Nothing shared is believed. A word of the other side is fetched once and the copy is checked before use; what a half
   needs to know later it keeps in private memory (the shadow) and never reads back.
2. Whoever sees the other side break a rule raises it as a `PeerViolation`, once, and the queue is broken from then on:
   to take, return, offer, reap or arm raises `QueueBroken` until a reset. Other queues do not notice.

Notification suppression [2.7.7, 2.7.10]: "arm, fence, look again" by whoever is about to sleep, "publish, fence, ask"
by whoever has published. The two fences make it impossible that both overlook the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vqshm import spec
from vqshm.errors import (
    ChainTooLong,
    InvalidAvailRingIndex,
    InvalidChain,
    InvalidDescriptorIndex,
    InvalidState,
    InvalidUsedId,
    InvalidUsedLength,
    InvalidUsedRingIndex,
    QueueBroken,
    QueueFull,
    RuleError,
    UsedIdNotInFlight,
    VqshmError,
    blame_peer,
)
from vqshm.memory import atomic
from vqshm.memory.atomic import Region
from vqshm.ring import layout as ring_layout
from vqshm.ring.chain import DescriptorChain, new_chain, new_walk
from vqshm.ring.suppress import need_event

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.layout import SplitLayout

_FLAGS = ring_layout.FLAGS
_IDX = ring_layout.IDX
_RING = ring_layout.RING
_NEXT = spec.VIRTQ_DESC_F_NEXT
_WRITE = spec.VIRTQ_DESC_F_WRITE
_INDIRECT = spec.VIRTQ_DESC_F_INDIRECT

Buffer = tuple[int, int]  # guest address, bytes


class _Half:
    """What both halves share: the windows over the three areas, and being broken."""

    __slots__ = ("_avail", "_desc", "_mask", "_used", "broken", "event_idx", "memory", "name", "size")

    def __init__(self, memory: Memory, layout: SplitLayout, event_idx: bool, name: str) -> None:
        self.name = name
        self.broken: VqshmError | None = None
        self.bind(memory, layout, event_idx)

    def bind(self, memory: Memory, layout: SplitLayout, event_idx: bool) -> None:
        """Use these areas from now on; positions stay as they are."""
        self.memory = memory
        self.size = layout.size
        self._mask = layout.size - 1
        self.event_idx = event_idx
        self._desc = memory.window(layout.desc_table, ring_layout.desc_table_bytes(layout.size), 16)
        self._avail = memory.window(layout.avail_ring, ring_layout.avail_ring_bytes(layout.size), 2)
        self._used = memory.window(layout.used_ring, ring_layout.used_ring_bytes(layout.size), 4)

    def avail_idx(self) -> int:
        """The idx field of the available ring, as it stands in memory."""
        return atomic.load_u16(self._avail, _IDX)

    def used_idx(self) -> int:
        """The idx field of the used ring, as it stands in memory."""
        return atomic.load_u16(self._used, _IDX)

    def _violation(self, error: RuleError) -> VqshmError:
        """The other side broke a rule: stop this queue, and return what to raise."""
        error.facts.setdefault("queue", self.name)
        error.args = (f"{self.name}: {error}",)
        self.broken = blame_peer(error)
        return self.broken

    def _refuse(self) -> None:
        raise QueueBroken(f"{self.name} stopped at: {self.broken}; reset it to go on", queue=self.name) from self.broken


class DeviceQueue(_Half):
    """The device half: takes chains, returns them used.

    `layout`: queue size and guest addresses of the areas. `event_idx`, `indirect`: the negotiated features. `strict`:
    see `vqshm.ring.chain`; in seed policy nothing is remembered about chains in flight either. Not thread-safe
    (`QueueSync`).
    """

    __slots__ = (
        "_avail_seen",
        "_num_added",
        "_shadow",
        "_taken",
        "_walk",
        "indirect",
        "next_avail",
        "next_used",
        "strict",
    )

    def __init__(
        self,
        memory: Memory,
        layout: SplitLayout,
        *,
        event_idx: bool = False,
        indirect: bool = True,
        strict: bool = True,
        name: str = "queue",
    ) -> None:
        self.indirect = indirect
        self.strict = strict
        self.next_avail = 0  # position of the next chain to take, u16
        self.next_used = 0  # position of the next used element, u16
        self._avail_seen = 0  # avail.idx when last looked at
        self._num_added = 0  # used elements since needs_notification was last asked
        super().__init__(memory, layout, event_idx, name)

    def bind(self, memory: Memory, layout: SplitLayout, event_idx: bool) -> None:
        """Use these areas from now on; positions stay as they are, chains in flight are forgotten."""
        super().bind(memory, layout, event_idx)
        self._avail_seen = self.next_avail
        self._walk = new_walk(memory, self.strict, self.indirect)
        self._shadow = Region(bytearray(8 * layout.size))  # per head: 1 + writable bytes while in flight, else 0
        self._taken = Region(bytearray(2 * layout.size))  # the head taken at each position, to undo a pop

    # -- taking --------------------------------------------------------------------------------------------------------

    def available(self) -> int:
        """Chains that can be taken now. Raises InvalidAvailRingIndex if the driver claims more than the queue holds."""
        if self.broken is not None:
            self._refuse()
        seen = atomic.load_u16(self._avail, _IDX)
        count = (seen - self.next_avail) & 0xFFFF
        if count > self.size:
            error = InvalidAvailRingIndex(
                f"avail.idx {seen} is {count} ahead of position {self.next_avail}, but the queue has {self.size} slots",
                index=seen,
                limit=self.size,
            )
            raise self._violation(error) if self.strict else error
        self._avail_seen = seen
        return count

    def pop_head(self) -> int:
        """Take the next available chain: the index of its first descriptor, or -1 if there is none [2.7.13.3].

        Raises InvalidAvailRingIndex and, in strict policy, InvalidDescriptorIndex, InvalidChain, QueueBroken.
        """
        if self.strict:
            if self.broken is not None:
                self._refuse()
            if self.next_avail == self._avail_seen and self.available() == 0:
                return -1
        elif self.available() == 0:
            return -1
        return self._take()

    def _take(self) -> int:
        """The head at the next position, without looking at idx."""
        slot = self.next_avail & self._mask
        head = atomic.load_u16(self._avail, _RING + 2 * slot)
        if self.strict:
            if head >= self.size:
                raise self._violation(
                    InvalidDescriptorIndex(
                        f"available ring slot {slot} holds head {head} of {self.size}", index=head, limit=self.size
                    )
                )
            if atomic.get_u64(self._shadow, 8 * head):
                raise self._violation(InvalidChain(f"head {head} is offered again while in flight", index=head))
            atomic.put_u64(self._shadow, 8 * head, 1)
            atomic.put_u16(self._taken, 2 * slot, head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        return head

    def pop(self) -> DescriptorChain | None:
        """Take the next available chain, fetched and checked in strict policy; None if there is none.

        Raises: as `pop_head`, and every RuleError of the chain as a PeerViolation.
        """
        head = self.pop_head()
        if head < 0:
            return None
        return self.chain(head)

    def chain(self, head: int) -> DescriptorChain:
        """The chain that starts at a head taken with `pop_head`. Raises InvalidState if it was not, else as `pop`."""
        if self.broken is not None:
            self._refuse()
        if head < 0 or (self.strict and (head >= self.size or atomic.get_u64(self._shadow, 8 * head) == 0)):
            raise InvalidState(f"{self.name}: head {head} is not in flight", index=head)
        self._walk.start(self._desc, self.size, head)
        if not self.strict:
            return new_chain(self._walk, head, self)
        try:
            chain = new_chain(self._walk, head, self)
        except RuleError as error:
            error.facts["head"] = head
            raise self._violation(error) from None
        atomic.put_u64(self._shadow, 8 * head, 1 + chain.writable_bytes)
        return chain

    def go_to_previous_position(self) -> None:
        """Undo the last advance of `next_avail`: that chain will be taken again.

        Raises, in strict policy, InvalidState if that chain is not in flight: it was returned, or never taken.
        """
        position = (self.next_avail - 1) & 0xFFFF
        if self.strict:
            head = atomic.get_u16(self._taken, 2 * (position & self._mask))
            if atomic.get_u64(self._shadow, 8 * head) == 0:
                raise InvalidState(f"{self.name}: no chain in flight was taken at position {position}", index=position)
            atomic.put_u64(self._shadow, 8 * head, 0)
        self.next_avail = position

    def seek(self, next_avail: int, next_used: int) -> None:
        """Go on at these positions (u16). Raises ValueError."""
        if (next_avail | next_used) >> 16:
            raise ValueError(f"{self.name}: positions {next_avail} and {next_used} must lie in 0..65535")
        self.next_avail = self._avail_seen = next_avail
        self.next_used = next_used

    def __iter__(self) -> AvailIter:
        """Take the chains available at this moment, one per step. Raises as `available`."""
        return AvailIter(self)

    # -- returning -----------------------------------------------------------------------------------------------------

    def add_used(self, head: int, written: int) -> None:
        """Return a chain, with the number of bytes written to its device-writable part [2.7.8.2].

        Raises InvalidDescriptorIndex for a head that cannot be, InvalidUsedLength for a number that is not 32 bits; in
        strict policy also for more bytes than the chain can hold, UsedIdNotInFlight for a head that was not taken, and
        QueueBroken.
        """
        if head < 0 or head >= self.size:
            raise InvalidDescriptorIndex(f"{self.name}: head {head} of {self.size}", index=head, limit=self.size)
        if written >> 32:
            raise InvalidUsedLength(f"{self.name}: {written} bytes written to head {head}", index=head)
        if self.strict:
            self._check_used(head, written)
        offset = _RING + 8 * (self.next_used & self._mask)
        atomic.put_u32(self._used, offset, head)
        atomic.put_u32(self._used, offset + 4, written)
        self.next_used = (self.next_used + 1) & 0xFFFF
        self._num_added += 1
        # The element must be visible before the idx that covers it [2.7.8.2].
        atomic.store_u16(self._used, _IDX, self.next_used)

    def _check_used(self, head: int, written: int) -> None:
        if self.broken is not None:
            self._refuse()
        capacity = atomic.get_u64(self._shadow, 8 * head)
        if capacity == 0:
            raise UsedIdNotInFlight(f"{self.name}: head {head} was not taken, or was already returned", index=head)
        if written > capacity - 1:
            raise InvalidUsedLength(
                f"{self.name}: {written} bytes written to head {head}, which holds {capacity - 1} writable ones",
                index=head,
                limit=capacity - 1,
            )
        atomic.put_u64(self._shadow, 8 * head, 0)

    # -- notifications -------------------------------------------------------------------------------------------------

    def needs_notification(self) -> bool:
        """Whether the driver must be called for the chains returned since this was last asked [2.7.7.2]."""
        added = self._num_added
        atomic.fence()  # used.idx must be visible before the driver's wish is read
        if self.event_idx:
            event = atomic.load_u16(self._avail, ring_layout.used_event_offset(self.size))
            self._num_added = 0
            if added > 0xFFFF and self.strict:
                return True  # the position ran a full circle past the event
            return need_event(event, self.next_used, (self.next_used - added) & 0xFFFF)
        if not self.strict:
            return True  # the seed does not look at the flag
        self._num_added = 0
        return added > 0 and not atomic.load_u16(self._avail, _FLAGS) & spec.VIRTQ_AVAIL_F_NO_INTERRUPT

    def enable_notification(self) -> bool:
        """Ask to be kicked for the next chain, then look again: True if chains are waiting already, so do not sleep."""
        if self.broken is not None:
            self._refuse()
        if self.event_idx:
            atomic.store_u16(self._used, ring_layout.avail_event_offset(self.size), self.next_avail)
        else:
            atomic.store_u16(self._used, _FLAGS, 0)
        atomic.fence()  # the wish must be visible before avail.idx is read
        return atomic.load_u16(self._avail, _IDX) != self.next_avail

    def disable_notification(self) -> None:
        """Ask not to be kicked. With EVENT_IDX a stale `avail_event` says so already [2.7.10]."""
        if not self.event_idx:
            atomic.store_u16(self._used, _FLAGS, spec.VIRTQ_USED_F_NO_NOTIFY)


class AvailIter:
    """Takes the chains that were available when it was made, one per step.

    Seed policy ends where an entry of the available ring cannot be read; strict policy raises.
    """

    __slots__ = ("_last", "_queue")

    def __init__(self, queue: DeviceQueue) -> None:
        self._queue = queue
        if self._queue.broken is not None:
            self._queue._refuse()
        self._queue.available()
        self._last = self._queue._avail_seen

    def next_head(self) -> int:
        """Take a chain without reading its descriptors: the index of the first, or -1 at the end."""
        if self._queue.broken is not None:
            self._queue._refuse()
        left = (self._last - self._queue.next_avail) & 0xFFFF
        if left == 0 or (left > self._queue.size and self._queue.strict):  # somebody else took what was left, and more
            return -1
        try:
            return self._queue._take()
        except RuleError:
            if self._queue.strict:
                raise
            return -1

    def __iter__(self) -> AvailIter:
        return self

    def __next__(self) -> DescriptorChain:
        head = self.next_head()
        if head < 0:
            raise StopIteration
        return self._queue.chain(head)


class DriverQueue(_Half):
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
        "_tables",
        "_used_seen",
        "in_flight",
        "last_used",
        "num_free",
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
        self._low = self._high = 0  # bounds of the guest region last seen
        self._tables: Region | None = None
        self._table_base = self._entries = 0
        if indirect_tables is not None:
            self._table_base, self._entries = indirect_tables
            count = self._entries * spec.DESC_SIZE * self.size
            memory.check(self._table_base, count)
            self._tables = memory.window(self._table_base, count, 8)
        # The shadow: what this half must know about its own descriptors, where the device cannot write [rule 1].
        self._capacity = Region(bytearray(8 * self.size))  # per head: 1 + writable bytes while in flight, else 0
        self._parts = Region(bytearray(2 * self.size))  # per head: its entries in the descriptor table
        self._last = Region(bytearray(2 * self.size))  # per head: the last of them
        self._link = Region(bytearray(2 * self.size))  # per descriptor: the next of its chain, or the next free one
        self._forget()

    def _forget(self) -> None:
        for i in range(self.size):
            atomic.put_u64(self._capacity, 8 * i, 0)
            atomic.put_u16(self._link, 2 * i, (i + 1) & self._mask)
        self._free = 0
        self.num_free = self.size
        self.in_flight = 0  # chains

    def seek(self, position: int) -> None:
        """Go on at this position (u16), where both idx fields stand. Raises InvalidState if chains are in flight."""
        if position >> 16:
            raise ValueError(f"{self.name}: position {position} must lie in 0..65535")
        if self.in_flight:
            raise InvalidState(f"{self.name}: {self.in_flight} chains are in flight", in_flight=self.in_flight)
        self._avail_idx = self._published = position
        self.last_used = self._used_seen = position

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
        count = len(readable) + len(writable)
        if count == 0 or count > self.size:
            raise InvalidChain(f"{self.name}: a chain of {count} buffers; 1 to {self.size} fit", limit=self.size)
        in_table = count > 1 and count <= self._entries
        needed = 1 if in_table else count
        if needed > self.num_free:
            raise QueueFull(
                f"{self.name}: {needed} descriptors wanted, {self.num_free} of {self.size} free; reap first, "
                f"{self.in_flight} chains are in flight",
                free=self.num_free,
                in_flight=self.in_flight,
            )
        total = self._check_buffers(readable, 0)
        capacity = self._check_buffers(writable, total) - total
        head = self._free
        if in_table:
            self._fill_table(head, readable, writable)
            last = head
        else:
            last = self._fill_chain(readable, writable)
        self._free = atomic.get_u16(self._link, 2 * last)
        self.num_free -= needed
        self.in_flight += 1
        atomic.put_u64(self._capacity, 8 * head, 1 + capacity)
        atomic.put_u16(self._parts, 2 * head, needed)
        atomic.put_u16(self._last, 2 * head, last)
        atomic.put_u16(self._avail, _RING + 2 * (self._avail_idx & self._mask), head)
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        if publish:
            self.publish()
        return head

    def publish(self) -> None:
        """Show the device every chain added so far, what they consist of before the idx that covers them [2.7.13.3]."""
        self._num_published += (self._avail_idx - self._published) & 0xFFFF
        self._published = self._avail_idx
        atomic.store_u16(self._avail, _IDX, self._avail_idx)

    def _check_buffers(self, buffers: Sequence[Buffer], total: int) -> int:
        """`total` and the bytes of the buffers, each of which must lie in memory."""
        for address, length in buffers:
            if not isinstance(address, int):
                raise TypeError(f"{self.name}: a guest address is a whole number, not {address!r}")
            addr = address
            if length < 1:
                raise InvalidChain(f"{self.name}: a buffer of {length} bytes at {addr:#x}")
            if not (self._low <= addr < self._high and length <= self._high - addr):
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
                index = atomic.get_u16(self._link, 2 * last)
                _put_descriptor(self._desc, last, addr, length, flags | (_NEXT if remaining else 0), index)
            flags = _WRITE
        return last

    def _fill_table(self, head: int, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> None:
        """Write the chain into the head's own indirect table, and one descriptor that refers to it [2.7.5.3]."""
        assert self._tables is not None  # noqa: S101 - there are entries only where there are tables
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
        if self.broken is not None:
            self._refuse()
        seen = atomic.load_u16(self._used, _IDX)
        count = (seen - self.last_used) & 0xFFFF
        if count > self.in_flight:
            raise self._violation(
                InvalidUsedRingIndex(
                    f"used.idx {seen} is {count} ahead of position {self.last_used}, but {self.in_flight} chains "
                    "are in flight",
                    index=seen,
                    limit=self.in_flight,
                )
            )
        self._used_seen = seen
        return count

    def reap(self) -> tuple[int, int] | None:
        """The next chain the device returned: (token, bytes written), or None if there is none [2.7.14].

        Raises InvalidUsedRingIndex, InvalidUsedId, UsedIdNotInFlight, InvalidUsedLength (all PeerViolation),
        QueueBroken.
        """
        if self.broken is not None:
            self._refuse()
        if self.last_used == self._used_seen and self.used() == 0:
            return None
        offset = _RING + 8 * (self.last_used & self._mask)
        head = atomic.get_u32(self._used, offset)
        written = atomic.get_u32(self._used, offset + 4)
        if head >= self.size:
            raise self._violation(InvalidUsedId(f"used id {head} of {self.size}", index=head, limit=self.size))
        capacity = atomic.get_u64(self._capacity, 8 * head)
        if capacity == 0:
            raise self._violation(UsedIdNotInFlight(f"used id {head} is not in flight", index=head))
        if written > capacity - 1:
            raise self._violation(
                InvalidUsedLength(
                    f"used id {head} claims {written} bytes written to {capacity - 1} writable ones",
                    index=head,
                    limit=capacity - 1,
                )
            )
        self._release(head)
        self.last_used = (self.last_used + 1) & 0xFFFF
        return head, written

    def _release(self, head: int) -> None:
        """Put the descriptors of a chain in front of the free list."""
        atomic.put_u64(self._capacity, 8 * head, 0)
        atomic.put_u16(self._link, 2 * atomic.get_u16(self._last, 2 * head), self._free)
        self._free = head
        self.num_free += atomic.get_u16(self._parts, 2 * head)
        self.in_flight -= 1

    def detach_unused(self) -> list[int]:
        """Take back every chain in flight: their tokens.

        Only when the device cannot touch them any more: after a reset.
        """
        tokens = [i for i in range(self.size) if atomic.get_u64(self._capacity, 8 * i)]
        self._forget()
        return tokens

    # -- notifications -------------------------------------------------------------------------------------------------

    def needs_kick(self) -> bool:
        """Whether the device must be kicked for the chains published since this was last asked [2.7.10, 2.7.13.4]."""
        added = self._num_published
        self._num_published = 0
        atomic.fence()  # avail.idx must be visible before the device's wish is read
        if self.event_idx:
            event = atomic.load_u16(self._used, ring_layout.avail_event_offset(self.size))
            if added > 0xFFFF:
                return True  # the position ran a full circle past the event
            return need_event(event, self._published, (self._published - added) & 0xFFFF)
        return added > 0 and not atomic.load_u16(self._used, _FLAGS) & spec.VIRTQ_USED_F_NO_NOTIFY

    def enable_notification(self, after: int = 1) -> bool:
        """Ask to be called when `after` more chains were used, then look again: True if so many already are.

        `after` is at most the number of chains in flight; without EVENT_IDX it is always 1 [2.7.7.1].
        """
        after = max(1, min(after, self.in_flight)) if self.event_idx else 1
        if self.event_idx:
            position = (self.last_used + after - 1) & 0xFFFF
            atomic.store_u16(self._avail, ring_layout.used_event_offset(self.size), position)
        else:
            atomic.store_u16(self._avail, _FLAGS, 0)
        atomic.fence()  # the wish must be visible before used.idx is read
        return self.used() >= after

    def disable_notification(self) -> None:
        """Ask not to be called. With EVENT_IDX a stale `used_event` says so already [2.7.7]."""
        if not self.event_idx:
            atomic.store_u16(self._avail, _FLAGS, spec.VIRTQ_AVAIL_F_NO_INTERRUPT)


def _put_descriptor(table: Region, index: int, addr: int, length: int, flags: int, following: int) -> None:
    """Write one table entry; nothing here orders it: `publish` does."""
    atomic.put_u64(table, index * 16, addr)
    atomic.put_u64(table, index * 16 + 8, length | (flags << 32) | (following << 48))
