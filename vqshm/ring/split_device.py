# cython: nonecheck=False, initializedcheck=False
"""The device half of a split virtqueue: takes chains the driver made available, returns them used [2.7.8, 2.7.13].

The way of a chain: `available` (look at avail.idx) → `pop` (take the head, fetch and check the chain) → handled by the
user → `add_used` → `needs_notification`. The rules that both halves obey stand in `split`.

Most chains are one buffer. For those `pop_single` does what `pop` does, and makes no object. Every chain, however it is
taken and returned, goes through `_claim`, `_return` and `_publish`.

An exception may strike the interpreted core between any two steps: Ctrl-C, a signal handler. One store decides each
operation. A chain is taken when `next_avail` moves on, the last step of all: who is struck before it claims the same
chain again. A chain is returned when `_giving` says so: who comes next does what is missing (`_mend`).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NoReturn

from vqshm import spec
from vqshm.errors import (
    ChainTooLong,
    InvalidAvailRingIndex,
    InvalidChain,
    InvalidDescriptorIndex,
    InvalidInflight,
    InvalidState,
    InvalidUsedLength,
    RuleError,
    UsedIdNotInFlight,
)
from vqshm.memory import atomic
from vqshm.ring import layout as ring_layout
from vqshm.ring.chain import DescriptorChain, new_chain
from vqshm.ring.split import Half
from vqshm.ring.suppress import need_event
from vqshm.ring.walk import new_walk

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.inflight import Inflight
    from vqshm.ring.layout import SplitLayout

_FLAGS = ring_layout.FLAGS
_IDX = ring_layout.IDX
_RING = ring_layout.RING
_NO_INTERRUPT = spec.VIRTQ_AVAIL_F_NO_INTERRUPT
_NEXT = spec.VIRTQ_DESC_F_NEXT
_WRITE = spec.VIRTQ_DESC_F_WRITE
_LINKS = spec.VIRTQ_DESC_F_NEXT | spec.VIRTQ_DESC_F_INDIRECT  # flags of a descriptor that is not all of its chain
_NOTHING = atomic.Region(b"")
_NOWHERE = 0x10000  # no position
_LENGTH = 0xFFFFFFFF  # the length in the second half of a descriptor; compiled, a name is faster than the number


class DeviceQueue(Half):
    """The device half: takes chains, returns them used.

    `layout`: queue size and guest addresses of the areas. `event_idx`, `indirect`: the negotiated features. `strict`:
    see `vqshm.ring.walk`; in seed policy nothing is remembered about chains in flight either. `inflight`: where to
    write down what is in flight, for a successor (strict policy only). Not thread-safe (`QueueSync`).
    """

    __slots__ = (
        "_avail_seen",
        "_bytes",
        "_claimed",
        "_given",
        "_giving",
        "_high",
        "_inflight",
        "_low",
        "_num_added",
        "_replayed",
        "_replays",
        "_shadow",
        "_taken",
        "_walk",
        "_window",
        "addr",
        "answer_addr",
        "answer_room",
        "given_up",
        "indirect",
        "length",
        "limit",
        "next_avail",
        "next_used",
        "single",
        "strict",
        "writable",
    )

    def __init__(
        self,
        memory: Memory,
        layout: SplitLayout,
        *,
        event_idx: bool = False,
        indirect: bool = True,
        strict: bool = True,
        inflight: Inflight | None = None,
        name: str = "queue",
    ) -> None:
        if inflight is not None and (not strict or inflight.size != layout.size):
            raise InvalidState(f"{name}: an in-flight area is for a queue of its size, in strict policy")
        self._inflight = inflight
        self._replays: list[int] = []  # heads that a dead device had taken, the next one last
        self._replayed = 0  # the one that was taken again last
        self.given_up = 0  # those that were not taken again, but returned undone
        self.indirect = indirect
        self.strict = strict
        self.limit = spec.MAX_CHAIN_BYTES  # device-readable ones of a chain; fewer where somebody copies them
        self.next_avail = 0  # position of the next chain to take, u16
        self.next_used = 0  # position of the next used element, u16
        self._avail_seen = 0  # avail.idx when last looked at
        self._num_added = 0  # used elements since needs_notification was last asked
        self._given = 0  # head of the chain returned last
        self.single = self.writable = False  # what `pop_single` found
        self.addr = self.length = self.answer_addr = self.answer_room = 0
        super().__init__(memory, layout, event_idx, name)

    def bind(self, memory: Memory, layout: SplitLayout, event_idx: bool) -> None:
        """Use these areas from now on; positions stay as they are, chains in flight are forgotten."""
        super().bind(memory, layout, event_idx)
        self._avail_seen = self.next_avail
        self._claimed = _NOWHERE  # position claimed last: the chain there is being taken while `next_avail` is the same
        self._giving = _NOWHERE  # position it was returned at; still `next_used` while that is not complete
        self._walk = new_walk(memory, self.strict, self.indirect)
        self._low = self._high = 0  # bounds of the guest region in which the last single buffer lay, and the window …
        self._window = _NOTHING  # … over it
        self._bytes = atomic.span_of(self._window)
        self._shadow = array("Q", bytes(8 * layout.size))  # per head: 1 + writable bytes while in flight, else 0
        self._taken = array("H", bytes(2 * layout.size))  # the head taken at each position, to undo a pop

    # -- taking --------------------------------------------------------------------------------------------------------

    def available(self) -> int:
        """Chains that can be taken now. Raises InvalidAvailRingIndex if the driver claims more than the queue holds."""
        return self._look()

    def _look(self) -> int:
        """As `available`."""
        if self.broken is not None:
            self._refuse()
        seen = atomic.load_u16(self._avail, _IDX)
        count = (seen - self.next_avail) & 0xFFFF
        if count > self.size:
            self._refuse_count(seen, count)
        self._avail_seen = seen
        return count

    def _refuse_count(self, seen: int, count: int) -> NoReturn:
        error = InvalidAvailRingIndex(
            f"avail.idx {seen} is {count} ahead of position {self.next_avail}, but the queue has {self.size} slots",
            index=seen,
            limit=self.size,
        )
        raise self._violation(error) if self.strict else error

    def pop_head(self) -> int:
        """Take the next available chain: the index of its first descriptor, or -1 if there is none [2.7.13.3].

        Raises InvalidAvailRingIndex and, in strict policy, InvalidDescriptorIndex, InvalidChain, QueueBroken.
        """
        return self._pop_head()

    def _pop_head(self) -> int:
        """As `pop_head`."""
        head = self._claim()
        if head >= 0:
            self.next_avail = (self.next_avail + 1) & 0xFFFF  # taken
        return head

    def pop_single(self) -> int:
        """As `pop_head`; in strict policy `single` then says whether the chain is one buffer in one guest region.

        If so, that was fetched and checked: guest address `addr`, bytes `length`, device-writable or not (`writable`).
        If not, nothing was kept: `chain` fetches all of it.
        """
        head = self._claim()
        if head < 0:
            self.single = False
            return head
        self.single = self._fetch(head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF  # taken
        return head

    def _claim(self) -> int:
        """The next available head, which is the same again until `next_avail` moves on; -1 if there is none."""
        if self.strict and self.next_avail != self._avail_seen:
            if self.broken is not None:
                self._refuse()
        elif self._look() == 0:
            return -1
        return self._claim_seen()

    def _claim_seen(self) -> int:
        """As `_claim`, without looking at idx."""
        slot = self.next_avail & self._mask
        head = atomic.load_u16(self._avail, _RING + 2 * slot)
        if self.strict:
            if head >= self.size or self._shadow[head]:
                self._doubt_head(head, slot)
            self._taken[slot] = head
            self._claimed = self.next_avail
            self._shadow[head] = 1
            if self._inflight is not None:
                if self._inflight.settling:
                    self._publish()  # it was interrupted
                self._inflight.take(head)
        return head

    def _doubt_head(self, head: int, slot: int) -> None:
        """Refuse a head that cannot be; but one that was claimed at this very position, and not taken, can."""
        if self._claimed != self.next_avail or self._taken[slot] != head:
            self._refuse_head(head, slot)

    def _refuse_head(self, head: int, slot: int) -> NoReturn:
        if head < self.size:
            raise self._violation(InvalidChain(f"head {head} is offered again while in flight", index=head))
        raise self._violation(
            InvalidDescriptorIndex(
                f"available ring slot {slot} holds head {head} of {self.size}", index=head, limit=self.size
            )
        )

    def _fetch(self, head: int) -> bool:
        """Fetch the first descriptor of a chain that was taken; False if `pop_single` shall keep nothing of it."""
        addr = atomic.get_u64(self._desc, 16 * head)
        rest = atomic.get_u64(self._desc, 16 * head + 8)
        length = rest & _LENGTH
        flags = (rest >> 32) & 0xFFFF
        if flags & _LINKS or length > self.limit or not self.strict:
            return False
        if not self._holds(addr, length):
            return False
        self.addr = addr
        self.length = length
        self.writable = flags & _WRITE != 0
        self._shadow[head] = 1 + length if flags & _WRITE else 1
        return True

    def _fetch_call(self, head: int) -> bool:
        """As `_fetch`, for a chain that was found to be no single buffer: whether it is a readable and a writable one.

        If both lie in one guest region, that is; `addr` and `length` are the readable one's then, `answer_addr` and
        `answer_room` the other's. The first one is fetched again: nothing was kept of it.
        """
        addr = atomic.get_u64(self._desc, 16 * head)
        rest = atomic.get_u64(self._desc, 16 * head + 8)
        length = rest & _LENGTH
        last = rest >> 48
        if (rest >> 32) & 0xFFFF != _NEXT or last >= self.size or last == head or not self.strict:
            return False
        answer = atomic.get_u64(self._desc, 16 * last)
        rest = atomic.get_u64(self._desc, 16 * last + 8)
        room = rest & _LENGTH
        if (rest >> 32) & 0xFFFF != _WRITE or length == 0 or room == 0 or length > self.limit or (length + room) >> 32:
            return False
        if not self._holds(addr, length) or not (self._low <= answer < self._high and room <= self._high - answer):
            return False
        self.addr = addr
        self.length = length
        self.answer_addr = answer
        self.answer_room = room
        self._shadow[head] = 1 + room
        return True

    def _holds(self, addr: int, length: int) -> bool:
        """As `_find`, which is asked only if the buffer does not lie in the region that the last one lay in."""
        if self._low <= addr < self._high and length <= self._high - addr:
            return True
        return self._find(addr, length)

    def _find(self, addr: int, length: int) -> bool:
        """Whether a buffer lies in one guest region; `_low`, `_high`, `_window` and `_bytes` are of that one then."""
        region = self.memory.find_region(addr)
        if region is None or length > region.end - addr:
            return False
        self._high = 0  # nothing is known
        self._window = region.window
        self._bytes = atomic.span_of(self._window)
        self._low = region.start
        self._high = region.end
        return True

    def pop(self) -> DescriptorChain | None:
        """Take the next available chain, fetched and checked in strict policy; None if there is none.

        Raises: as `pop_head`, and every RuleError of the chain as a PeerViolation.
        """
        head = self._claim()
        if head < 0:
            return None
        chain = self.chain(head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF  # taken
        return chain

    def chain(self, head: int) -> DescriptorChain:
        """The chain that starts at a head taken with `pop_head`. Raises InvalidState if it was not, else as `pop`."""
        if self.broken is not None or self._walk is None:
            self._refuse()
        if head < 0 or (self.strict and (head >= self.size or self._shadow[head] == 0)):
            raise InvalidState(f"{self.name}: head {head} is not in flight", index=head)
        self._walk.start(atomic.region_of(self._desc), self.size, head)
        if not self.strict:
            return new_chain(self._walk, head, self)
        try:
            chain = new_chain(self._walk, head, self)
            if chain.readable_bytes > self.limit:  # a driver may name the same memory often
                raise ChainTooLong(
                    f"the chain has {chain.readable_bytes} bytes to read, {self.limit} are the limit here"
                )
        except RuleError as error:
            error.facts["head"] = head
            raise self._violation(error) from None
        self._shadow[head] = 1 + chain.writable_bytes
        return chain

    def go_to_previous_position(self) -> None:
        """Undo the last advance of `next_avail`: that chain will be taken again.

        Raises, in strict policy, InvalidState if that chain is not in flight: it was returned, or never taken.
        """
        position = (self.next_avail - 1) & 0xFFFF
        if not self.strict:
            self.next_avail = position
            return
        head = self._taken[position & self._mask]
        if head >= self.size or self._shadow[head] == 0:
            raise InvalidState(f"{self.name}: no chain in flight was taken at position {position}", index=position)
        self._claimed = position
        self.next_avail = position  # from now on it is as good as not taken
        self._shadow[head] = 0
        if self._inflight is not None:
            self._inflight.untake(head)

    def seek(self, next_avail: int, next_used: int) -> None:
        """Go on at these positions (u16). Raises ValueError."""
        if (next_avail | next_used) >> 16:
            raise ValueError(f"{self.name}: positions {next_avail} and {next_used} must lie in 0..65535")
        self.next_avail = self._avail_seen = next_avail
        self.next_used = next_used
        self._claimed = self._giving = _NOWHERE

    # -- after a predecessor's death -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Write down that nothing is in flight: a new session. Without an in-flight area there is nothing to do."""
        if self._inflight is not None:
            self._inflight.begin()

    def resume(self) -> int:
        """Go on where a dead device stopped, before anything else is done: how many chains are to be handled again.

        `replay` yields them. Those that were handed out as often as may be are given up, and shown to the driver, which
        is to be called. Raises InvalidState without an in-flight area, InvalidInflight, InvalidUsedRingIndex.
        """
        if self._inflight is None or self.broken is not None:
            raise InvalidState(f"{self.name}: there is no in-flight area to go on from")
        used = atomic.load_u16(self._used, _IDX)
        seen = atomic.load_u16(self._avail, _IDX)
        try:
            heads = self._inflight.resume(used)
        except InvalidInflight as error:
            raise self._violation(error) from None
        if len(heads) > (seen - used) & 0xFFFF or (seen - used) & 0xFFFF > self.size:
            raise self._violation(
                InvalidInflight(
                    f"avail.idx {seen}, used.idx {used} and {len(heads)} chains in flight cannot be together",
                    index=used,
                )
            )
        self.seek((used + len(heads)) & 0xFFFF, used)
        for slot in range(self.size):
            self._taken[slot] = 0xFFFF  # no head: what somebody else took cannot be undone
        for head in heads:
            self._shadow[head] = 1
        self._replays = [head for head in heads if not self._give_up(head)]
        self._replays.reverse()
        self.given_up = len(heads) - len(self._replays)
        return len(self._replays)

    def _give_up(self, head: int) -> bool:
        """Return a chain undone, if it was handed out as often as may be: whether it was."""
        tries = None if self._inflight is None else self._inflight.tries
        if tries is None or not tries.is_exhausted(head):
            return False
        tries.give_up(head)
        self._return(head, 0)
        self._publish()
        tries.gave_up()
        return True

    @property
    def undone(self) -> int:
        """Chains of this session that were given up: returned undone, because whoever handled them died."""
        return 0 if self._inflight is None or self._inflight.tries is None else self._inflight.tries.undone

    def _attempt(self, head: int) -> int:
        """A chain that a dead device had taken is handed out again: for which time."""
        return 2 if self._inflight is None or self._inflight.tries is None else self._inflight.tries.again(head)

    def replay(self) -> DescriptorChain | None:
        """The next chain that a dead device had taken and not returned; None when there is no more. Raises as `pop`.

        It is to be returned as any other. It may have been handled before, wholly or in part: `replayed` says so, and
        `attempts` for which time it is handed out.
        """
        if not self._replays:
            return None
        last = len(self._replays) - 1
        self._replayed = self._replays[last]
        chain = self._again(self._replayed)
        del self._replays[last]
        return chain

    def undo_replay(self) -> None:
        """The chain that `replay` yielded last will be yielded again."""
        self._replays.append(self._replayed)

    @property
    def replays(self) -> int:
        """Chains that `replay` has still to yield."""
        return len(self._replays)

    def again(self, head: int) -> DescriptorChain | None:
        """The chain at a head that was taken, to be handled once more, `replayed`; None if it was returned.

        For whoever was interrupted, and does not know how far it came. Raises as `pop`.
        """
        if head < 0 or head >= self.size or self._shadow[head] == 0:
            return None
        return self._again(head)

    def _again(self, head: int) -> DescriptorChain:
        chain = self.chain(head)
        chain.attempts = self._attempt(head)
        return chain

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
        self._put(head, written)
        self._publish()

    def put_used(self, head: int, written: int) -> None:
        """As `add_used`, but the driver does not see it before `publish_used()`: for batches."""
        self._put(head, written)

    def _put(self, head: int, written: int) -> None:
        """As `put_used`."""
        if atomic.INTERRUPTIBLE and self._giving == self.next_used:
            self._mend()
        if head < 0 or head >= self.size or written >> 32:
            self._refuse_used(head, written)
        if self.strict:
            if self.broken is not None:
                self._refuse()
            if written >= self._shadow[head]:
                self._refuse_used(head, written)
        self._return(head, written)

    def _return(self, head: int, written: int) -> None:
        """Write the used element of a chain that was taken."""
        offset = _RING + 8 * (self.next_used & self._mask)
        atomic.put_u32(self._used, offset, head)
        atomic.put_u32(self._used, offset + 4, written)
        if atomic.INTERRUPTIBLE:
            self._given = head
            self._giving = self.next_used  # from now on it is returned
        self._shadow[head] = 0
        if self._inflight is not None:
            self._inflight.give(head)
        self._num_added += 1
        self.next_used = (self.next_used + 1) & 0xFFFF

    def _mend(self) -> None:
        """A return was interrupted: the rest of it."""
        self._shadow[self._given] = 0
        if self._inflight is not None:
            self._inflight.give(self._given)
        self._num_added += 1  # it may be one too many now: then a driver is called for nothing
        self.next_used = (self.next_used + 1) & 0xFFFF

    def publish_used(self) -> None:
        """Show the driver every chain returned so far, the elements before the idx that covers them [2.7.8.2]."""
        if atomic.INTERRUPTIBLE and self._giving == self.next_used:
            self._mend()
        self._publish()

    def _publish(self) -> None:
        """As `publish_used`."""
        if self._inflight is not None:
            self._inflight.settling = True
        atomic.store_u16(self._used, _IDX, self.next_used)
        if self._inflight is not None:
            self._inflight.settle(self.next_used)

    def _refuse_used(self, head: int, written: int) -> NoReturn:
        if head < 0 or head >= self.size:
            raise InvalidDescriptorIndex(f"{self.name}: head {head} of {self.size}", index=head, limit=self.size)
        if written >> 32:
            raise InvalidUsedLength(f"{self.name}: {written} bytes written to head {head}", index=head)
        if self._shadow[head] == 0:
            self._publish()  # an interrupted call may have returned it, and not have shown it
            raise UsedIdNotInFlight(f"{self.name}: head {head} was not taken, or was already returned", index=head)
        room = self._shadow[head] - 1
        raise InvalidUsedLength(
            f"{self.name}: {written} bytes written to head {head}, which holds {room} writable ones",
            index=head,
            limit=room,
        )

    # -- notifications -------------------------------------------------------------------------------------------------

    def needs_notification(self) -> bool:
        """Whether the driver must be called for the chains returned since this was last asked [2.7.7.2]."""
        wanted = self._is_wanted(self._num_added)
        if self.strict or self.event_idx:  # else nobody looked at it, and the seed keeps it
            self._num_added = 0
        return wanted

    def _is_wanted(self, added: int) -> bool:
        """Whether the driver must be called for the chains returned last, as many as were added."""
        atomic.fence()  # used.idx must be visible before the driver's wish is read
        if self.event_idx:
            event = atomic.load_u16(self._avail, self._used_event)
            # Behind a full circle the position ran past the event.
            return (added > 0xFFFF and self.strict) or need_event(
                event, self.next_used, (self.next_used - added) & 0xFFFF
            )
        # The seed does not look at the flag.
        return not self.strict or (added > 0 and not atomic.load_u16(self._avail, _FLAGS) & _NO_INTERRUPT)

    def enable_notification(self) -> bool:
        """Ask to be kicked for the next chain, then look again: True if chains are waiting already, so do not sleep."""
        if self.broken is not None:
            self._refuse()
        if self.event_idx:
            atomic.store_u16(self._used, self._avail_event, self.next_avail)
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
        queue.available()  # of whatever `queue` is: only a queue has this, and gets past it
        self._queue = queue
        self._last = self._queue._avail_seen

    def next_head(self) -> int:
        """Take a chain without reading its descriptors: the index of the first, or -1 at the end."""
        head = self._claim()
        if head >= 0:
            self._queue.next_avail = (self._queue.next_avail + 1) & 0xFFFF
        return head

    def _claim(self) -> int:
        """As `DeviceQueue._claim`."""
        if self._queue is None:
            raise TypeError("an AvailIter is made of a queue")
        if self._queue.broken is not None:
            self._queue._refuse()
        left = (self._last - self._queue.next_avail) & 0xFFFF
        if left == 0 or (left > self._queue.size and self._queue.strict):  # somebody else took what was left, and more
            return -1
        try:
            return self._queue._claim_seen()
        except RuleError:
            if self._queue.strict:
                raise
            return -1

    def __iter__(self) -> AvailIter:
        return self

    def __next__(self) -> DescriptorChain:
        head = self._claim()
        if head < 0:
            raise StopIteration
        chain = self._queue.chain(head)
        self._queue.next_avail = (self._queue.next_avail + 1) & 0xFFFF
        return chain
