# cython: nonecheck=False, initializedcheck=False
"""Tries: how often each chain in flight was handed out, over the deaths of devices; and which were given up.

A chain that kills whoever handles it would come again for ever. So what the in-flight area (`ring/inflight`) cannot say
stands behind it, in an area of our own:

    offset  bytes  field                                                                   who writes it
         0      8  undone: 65536 x chains given up so far, + 1 + head of the one that
                   is being given up now, or 0                                             device
      8+4i      2  tries: how often the chain at descriptor i was handed out again         device
     10+4i      2  given up: 1 if the chain at descriptor i was returned undone            device; driver, see below

A chain counts as tried before whoever handles it sees it. Those behind it, which a dead device had taken as well, count
when their turn comes: so they do not suffer for it.

A successor gives up what was handed out `limit` times, before it takes anything else (`DeviceQueue.resume`):

    mark      given up[i] = 1; undone = one more, and i
    return    used element with length 0; used.idx; settled
    unmark    tries[i] = 0; undone = so many, and none

Who dies in between has a successor that finds i named in `undone`: if i is still in flight it was counted already, and
if not, only the name is to be taken away. So each is counted once.

Where a driver wants to tell an answer of no bytes from a chain that was given up, it clears `given up[i]` before it
offers a chain there, and looks when that comes back: the word belongs to whom the descriptor belongs to.

The area lies in memory that the driver can write. Whatever it writes there, its own chains are given up too early or
too late, and nothing else: each word is read once, and no number but a head leads anywhere.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from vqshm.errors import InvalidInflight
from vqshm.memory import atomic

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory

ALIGN: Final = 8  # of this area, and of the one before it
MOST: Final = 0xFFFF  # tries that can be told apart

_UNDONE: Final = 0
_ENTRIES: Final = 8
_GIVEN_UP: Final = 2  # in an entry; its tries are at 0
_COUNTED: Final = (1 << 48) - 1


def tries_bytes(size: int) -> int:
    """Bytes of the area of a queue of `size` descriptors."""
    return _ENTRIES + 4 * size


class Tries:
    """The area of one queue, at `address` in guest memory, as the device uses it.

    `limit`: how often a chain is handed out at most, the first time among them; 0: there is no limit. Raises as
    `Inflight`.
    """

    __slots__ = ("_area", "_giving", "_next", "_window", "limit", "noted", "size", "undone")

    def __init__(self, memory: Memory, address: int, size: int, limit: int = 0) -> None:
        self.size = size
        self.limit = limit
        self._window = memory.window(address, tries_bytes(size), ALIGN)
        self._area = atomic.span_of(self._window)
        self._next = array("H", bytes(2 * size))  # per head: what the next try makes of its word; 0 if it has none
        self.noted = 0  # heads whose word may not be 0
        self.undone = 0  # chains given up in this session
        self._giving = -1  # the head that is being given up, and is counted

    def begin(self) -> None:
        """A new session: nothing was tried."""
        atomic.store_u64(self._area, _UNDONE, 0)
        for head in range(self.size):
            atomic.store_u32(self._area, _ENTRIES + 4 * head, 0)
            self._next[head] = 0
        self.noted = self.undone = 0
        self._giving = -1

    def resume(self, taken: list[int]) -> None:
        """Learn what a dead device left; `taken` is in flight. Raises InvalidInflight; nothing was changed then."""
        word = atomic.load_u64(self._area, _UNDONE)
        giving = (word & 0xFFFF) - 1
        if giving >= self.size:
            raise InvalidInflight(f"head {giving} of {self.size} is being given up", index=giving, limit=self.size)
        self.undone = word >> 16
        self.noted = 0
        for head in range(self.size):
            self._next[head] = 0
        for head in taken:
            tries = atomic.load_u16(self._area, _ENTRIES + 4 * head)
            self._next[head] = min(tries + 1, MOST)
            self.noted += 1
        for head in range(self.size):
            if self._next[head] == 0 and atomic.load_u16(self._area, _ENTRIES + 4 * head):
                atomic.store_u16(self._area, _ENTRIES + 4 * head, 0)  # it was returned
        self._giving = giving
        if giving >= 0 and self._next[giving] == 0:
            self.gave_up()

    def again(self, head: int) -> int:
        """The chain at `head` is handed out again now: for which time. To say so twice is to say so once."""
        if self._next[head] == 0:  # it was first taken in this life, by a call that was interrupted
            self._next[head] = 1
            self.noted += 1
        atomic.store_u16(self._area, _ENTRIES + 4 * head, self._next[head])
        return self._next[head] + 1

    def is_exhausted(self, head: int) -> bool:
        """Whether the chain at `head`, which a dead device left, was handed out as often as may be."""
        return 0 < self.limit <= self._next[head]

    def give_up(self, head: int) -> None:
        """The chain at `head` is returned undone, next of all."""
        atomic.store_u16(self._area, _ENTRIES + 4 * head + _GIVEN_UP, 1)
        if self._giving != head:
            self.undone = (self.undone + 1) & _COUNTED
            atomic.store_u64(self._area, _UNDONE, self.undone << 16 | head + 1)
            self._giving = head

    def gave_up(self) -> None:
        """It is."""
        atomic.store_u64(self._area, _UNDONE, self.undone << 16)
        self._giving = -1

    def forget(self, head: int) -> None:
        """The chain at `head` was returned, and the driver has seen it."""
        if self._next[head]:
            atomic.store_u16(self._area, _ENTRIES + 4 * head, 0)
            self._next[head] = 0
            self.noted -= 1


class Undone:
    """The same area as the driver uses it."""

    __slots__ = ("_area", "_window")

    def __init__(self, memory: Memory, address: int, size: int) -> None:
        self._window = memory.window(address, tries_bytes(size), ALIGN)
        self._area = atomic.span_of(self._window)

    @property
    def count(self) -> int:
        """Chains that were given up in this session."""
        return atomic.load_u64(self._area, _UNDONE) >> 16

    def clear(self, head: int) -> None:
        """A chain is about to be offered at `head`."""
        atomic.store_u16(self._area, _ENTRIES + 4 * head + _GIVEN_UP, 0)

    def says(self, head: int) -> bool:
        """Whether the chain that came back at `head` was given up."""
        return atomic.load_u16(self._area, _ENTRIES + 4 * head + _GIVEN_UP) != 0
