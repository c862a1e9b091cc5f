# cython: nonecheck=False, initializedcheck=False
"""In-flight area: which chains a device has taken and not returned, kept where its successor finds it.

A device process may be killed between any two stores. What it knew of its queue dies with it: the positions, and which
chains it had taken. `used.idx` alone tells it only of a device that returns chains in order. So the device writes down,
in shared memory, what it takes; the layout is the one that vhost-user gives to the in-flight region of a split queue.

    offset  bytes  field
         0      8  features, 0
         8      2  version: 1; 0 while nobody has begun
        10      2  desc_num: the queue's size
        12      2  last_batch_head: the chain returned last
        14      2  used_idx: used.idx as far as the marks below agree with it
    16+16i      1  inflight: 1 while the chain that starts at descriptor i is with the device
                5  zero
                2  next: the chain returned before this one
                8  counter: when it was taken; the order in which a successor handles them again

The steps, each visible before the next one:

    take     counter[i]; inflight[i] = 1
    return   used element; next[i] = last_batch_head; last_batch_head = i            (for each chain of a batch)
    publish  used.idx                                                                (now the driver has them)
    settle   inflight = 0 for each of the batch; used_idx = used.idx

Whatever step was the last one, a successor knows the truth. If `used_idx` differs from used.idx, the dead device
published a batch of that difference and did not finish settling it: those are the first so many chains of the list that
starts at `last_batch_head`, and their marks are wiped out. What is marked then was taken and never returned. The driver
has seen a chain if and only if used.idx covers it, and what is covered is never in flight again: so none is completed
twice, and none is lost. Handled twice may be any that is still marked: whether the dead device had done its work nobody
can know.

The area lies in memory that the driver can write, and the dead device was a stranger, too. `resume` reads each word
once, believes none, and takes no more steps than the queue has descriptors; everything else here only writes.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from vqshm.errors import InvalidInflight
from vqshm.memory import atomic
from vqshm.ring.tries import ALIGN

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.tries import Tries

VERSION: Final = 1

_FEATURES: Final = 0
_VERSION: Final = 8
_DESC_NUM: Final = 10
_LAST_BATCH_HEAD: Final = 12
_USED_IDX: Final = 14
_ENTRIES: Final = 16
_NEXT: Final = 6  # in an entry; its mark is at 0
_COUNTER: Final = 8
_MOST: Final = 1 << 62  # a counter: years at a billion chains a second; more is no counter


def inflight_bytes(size: int) -> int:
    """Bytes of the in-flight area of a queue of `size` descriptors."""
    return _ENTRIES + 16 * size


class Inflight:
    """The area of one queue, at `address` in guest memory, as the device that writes it uses it.

    `tries`: where to count how often each chain is handed out, if anywhere.

    Raises GuestMemory, AddressOverflow, RuleError if it does not lie in one piece of memory, aligned to 8 bytes.
    """

    __slots__ = ("_area", "_batch", "_count", "_counter", "_last", "_window", "settling", "size", "tries")

    def __init__(self, memory: Memory, address: int, size: int, tries: Tries | None = None) -> None:
        self.size = size
        self.tries = tries
        self._window = memory.window(address, inflight_bytes(size), ALIGN)
        self._area = atomic.span_of(self._window)
        self._batch = array("H", bytes(2 * size))  # heads returned and not yet settled; our own list is what we believe
        self._count = 0
        self._counter = 0  # of the next chain taken
        self._last = 0  # what last_batch_head holds
        self.settling = False  # used.idx moves on, or has, and the marks do not say so yet

    # -- a session's life ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new session: nothing is in flight, and both rings stand at 0."""
        atomic.store_u16(self._area, _VERSION, 0)  # whoever comes while this is half done, begins as well
        for index in range(self.size):
            entry = _ENTRIES + 16 * index
            atomic.store_u64(self._area, entry, 0)
            atomic.store_u64(self._area, entry + _COUNTER, 0)
        if self.tries is not None:
            self.tries.begin()
        atomic.store_u64(self._area, _FEATURES, 0)
        atomic.store_u16(self._area, _DESC_NUM, self.size)
        atomic.store_u16(self._area, _LAST_BATCH_HEAD, 0)
        atomic.store_u16(self._area, _USED_IDX, 0)
        atomic.store_u16(self._area, _VERSION, VERSION)
        self._count = self._counter = self._last = 0
        self.settling = False

    def resume(self, used_idx: int) -> list[int]:
        """Settle what a dead device left, while used.idx is `used_idx`; the heads in flight, in the order of taking.

        Raises InvalidInflight for an area that no device leaves behind; nothing was changed then.
        """
        version = atomic.load_u16(self._area, _VERSION)
        if version == 0:
            if used_idx != 0:
                raise InvalidInflight(f"used.idx is {used_idx}, but the in-flight area says that nobody has begun")
            self.begin()
            return []
        size = atomic.load_u16(self._area, _DESC_NUM)
        if version != VERSION or size != self.size or atomic.load_u64(self._area, _FEATURES) != 0:
            raise InvalidInflight(
                f"an in-flight area of version {version} for {size} descriptors; this queue wants version {VERSION} "
                f"for {self.size}",
                version=version,
                size=size,
            )
        settled = self._last_batch(used_idx)
        taken = self._marked(settled)
        if self.tries is not None:
            self.tries.resume([head for _, head in taken])
        for head in settled:
            atomic.store_u16(self._area, _ENTRIES + 16 * head, 0)
        atomic.store_u16(self._area, _USED_IDX, used_idx)
        self._count = 0
        self._counter = 0
        for counter, _ in taken:
            self._counter = counter + 1
        return [head for _, head in taken]

    def _last_batch(self, used_idx: int) -> list[int]:
        """The heads of the batch that was published, and perhaps not settled."""
        count = (used_idx - atomic.load_u16(self._area, _USED_IDX)) & 0xFFFF
        if count > self.size:
            raise InvalidInflight(
                f"a last batch of {count} chains in a queue of {self.size}", index=count, limit=self.size
            )
        head = self._last = atomic.load_u16(self._area, _LAST_BATCH_HEAD)
        batch: list[int] = []
        seen = bytearray(self.size)
        while len(batch) < count:
            if head >= self.size:
                raise InvalidInflight(f"the last batch holds head {head} of {self.size}", index=head, limit=self.size)
            if seen[head]:
                raise InvalidInflight(f"the last batch holds head {head} twice", index=head)
            seen[head] = 1
            batch.append(head)
            head = atomic.load_u16(self._area, _ENTRIES + 16 * head + _NEXT)
        return batch

    def _marked(self, settled: list[int]) -> list[tuple[int, int]]:
        """(counter, head) of each chain that is marked, but for the `settled` ones, by counter."""
        taken: list[tuple[int, int]] = []
        out = bytearray(self.size)
        for head in settled:
            out[head] = 1
        for head in range(self.size):
            mark = atomic.load_u16(self._area, _ENTRIES + 16 * head) & 0xFF  # the rest is padding
            if mark > 1:
                raise InvalidInflight(f"head {head} has the in-flight mark {mark}", index=head)
            if mark and not out[head]:
                taken.append((atomic.load_u64(self._area, _ENTRIES + 16 * head + _COUNTER), head))
        taken.sort()
        before = -1
        for counter, head in taken:
            if counter == before or counter >= _MOST:
                raise InvalidInflight(f"head {head} was taken as number {counter}, which cannot be", index=head)
            before = counter
        return taken

    # -- the steps of a chain ------------------------------------------------------------------------------------------

    def take(self, head: int) -> None:
        """The chain at `head` is with the device from now on."""
        at = _ENTRIES + 16 * head
        atomic.put_u64(self._area, at + _COUNTER, self._counter)
        self._counter += 1
        atomic.store_u16(self._area, at, 1)

    def untake(self, head: int) -> None:
        """It is not, after all: it will be taken again."""
        atomic.store_u16(self._area, _ENTRIES + 16 * head, 0)

    def give(self, head: int) -> None:
        """Its used element is written, behind the used.idx that the driver sees. To say so twice is to say so once."""
        if self._count and self._batch[self._count - 1] == head:
            self._last = head
        elif self._count < self.size:  # more cannot be, unless the driver offered again what it had not got back
            atomic.put_u16(self._area, _ENTRIES + 16 * head + _NEXT, self._last)
            atomic.store_u16(self._area, _LAST_BATCH_HEAD, head)
            self._batch[self._count] = head
            self._count += 1
            self._last = head

    def settle(self, used_idx: int) -> None:
        """used.idx says so: what was given back is the driver's, and the next batch begins."""
        index = 0
        while index < self._count:
            atomic.store_u16(self._area, _ENTRIES + 16 * self._batch[index], 0)
            if self.tries is not None and self.tries.noted > 0:
                self.tries.forget(self._batch[index])
            index += 1
        atomic.store_u16(self._area, _USED_IDX, used_idx)
        self._count = 0
        self.settling = False
