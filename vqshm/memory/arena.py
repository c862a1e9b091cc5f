# cython: nonecheck=False, initializedcheck=False
"""Arena: the allocator for messages, which are given back in about the order in which they were taken.

One range of memory, used round and round; a message lies in one piece. All bookkeeping is private to the driver.

        ┌──────────┬───────────────┬─────┬───────────┬─────────┐
        │ message 4│     free      │  1  │ 2 (back)  │    3    │
        └──────────┴───────────────┴─────┴───────────┴─────────┘
                   ▲ the next one        oldest: 1, so what 2 gave back waits for it

Taking and giving back cost the same few steps whatever the sizes are. The price: a message that is kept for long keeps
all younger ones' memory, too, so who wants to keep one copies it. (`BufferPool` is for any order.) A taker that finds
the arena empty starts at its beginning, so a queue that is kept short stays in the cache.
"""

from __future__ import annotations

from array import array
from typing import Final, NoReturn

from vqshm.errors import InvalidState
from vqshm.memory.pool import GRAIN

_ROUND: Final = GRAIN - 1  # a message has whole cache lines, so that two never share one


class Arena:
    """`size` bytes in whole cache lines, for at most `slots` (a power of two) messages at a time."""

    __slots__ = ("_at", "_mask", "_oldest", "_taken", "free", "out", "size", "slot")

    def __init__(self, size: int, slots: int) -> None:
        self.size = size // GRAIN * GRAIN
        if self.size < GRAIN or slots < 1 or slots & (slots - 1):
            raise ValueError(f"no arena of {size} bytes for {slots} messages")
        self._mask = slots - 1
        self._taken = array("q", bytes(8 * slots))  # per slot: bytes it holds, negative once it was given back
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.free = self.size  # bytes
        self.out = 0  # messages
        self.slot = 0  # of the message taken last
        self._oldest = 0  # slot of the oldest message that is out
        self._at = 0  # where the next message goes, if it fits there

    def take(self, count: int) -> int:
        """The offset of `count` (1 or more) contiguous bytes, or -1 if there is no room; `slot` then names them."""
        if self.out > self._mask or count < 1 or count > self.size:
            return -1
        if self.out == 0:
            self._at = 0
        size = (count + _ROUND) & ~_ROUND
        offset = self._at
        used = size
        if size > self.size - offset:  # it does not fit in front of the end: leave that out
            used += self.size - offset
            offset = 0
        if used > self.free:
            return -1
        self.slot = (self._oldest + self.out) & self._mask
        self._taken[self.slot] = used
        self._at = offset + size
        self.out += 1
        self.free -= used
        return offset

    def give(self, slot: int) -> int:
        """Give the message of a slot back; how many are still out. Raises InvalidState if it is not out."""
        if self.out == 0 or slot < 0 or slot > self._mask or self._taken[slot] <= 0:
            self._refuse_slot(slot)
        if slot != self._oldest:
            self._taken[slot] = -self._taken[slot]
            return self.out
        size = self._taken[slot]
        while True:  # those that came back before the oldest one follow it
            self._taken[slot] = 0
            self.free += size
            self.out -= 1
            slot = (slot + 1) & self._mask
            size = -self._taken[slot]
            if size <= 0 or self.out == 0:
                break
        self._oldest = slot
        return self.out

    def _refuse_slot(self, slot: int) -> NoReturn:
        raise InvalidState(f"no message is out in slot {slot}", slot=slot)

    def oldest(self) -> tuple[int, int]:
        """(slot, bytes) of the oldest message that is out; (-1, 0) if none is."""
        if self.out == 0:
            return -1, 0
        return self._oldest, self._taken[self._oldest]
