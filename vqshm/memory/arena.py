# cython: nonecheck=False, initializedcheck=False
"""Arena: the allocator for messages, which are given back in about the order in which they were taken.

One range of memory, used round and round; a message lies in one piece. All bookkeeping is private to the driver.

        ┌──────────┬───────────────┬─────┬───────────┬─────────┐
        │ message 4│     free      │  1  │ 2 (back)  │    3    │
        └──────────┴───────────────┴─────┴───────────┴─────────┘
                   ▲ the next one        oldest: 1, so what 2 gave back waits for it

What lies behind the youngest message and in front of the oldest is free. A message goes behind the youngest, or to the
beginning if it does not fit in front of the end. Taking and giving back cost the same few steps whatever the sizes are.
The price: a message that is kept for long keeps all younger ones' memory, too, so who wants to keep one copies it.
(`BufferPool` is for any order.) A taker that finds the arena empty starts at its beginning, so a queue that is kept
short stays in the cache.

Messages are numbered; a number is never used again, so who gives one back late, or twice, harms nobody. An exception
may strike between any two steps: one store takes a message (`ticket` moves on), one gives it back (its start is
inverted), and what follows from that is found out by whoever asks next.
"""

from __future__ import annotations

from array import array
from typing import Final, NoReturn

from vqshm.errors import InvalidState
from vqshm.memory.pool import GRAIN

_SHIFT: Final = GRAIN.bit_length() - 1  # a message has whole cache lines, so that two never share one
_ROUND: Final = GRAIN - 1


class Arena:
    """`size` bytes in whole cache lines, for at most `slots` (a power of two) messages at a time."""

    __slots__ = ("_end", "_lines", "_mask", "_past", "_start", "size", "ticket")

    def __init__(self, size: int, slots: int) -> None:
        self._lines = size // GRAIN
        self.size = self._lines * GRAIN
        if self.size < GRAIN or slots < 1 or slots & (slots - 1):
            raise ValueError(f"no arena of {size} bytes for {slots} messages")
        self._mask = slots - 1
        # By the last bits of a message's number, in cache lines:
        self._start = array("i", bytes(4 * slots))  # inverted, which is negative, once it was given back
        self._end = array("i", bytes(4 * slots))
        self.ticket = 0  # number of the message taken last; they count from 1
        self._past = 0  # as far as that, all were given back

    def clear(self) -> None:
        """Forget everything."""
        self._past = self.ticket

    def take(self, count: int) -> int:
        """The offset of `count` (1 or more) contiguous bytes, or -1 if there is no room; `ticket` then names them."""
        out = self._settle()
        if out > self._mask or count < 1 or count > self.size:
            return -1
        lines = (count + _ROUND) >> _SHIFT
        at = 0
        if out:
            at = self._end[self.ticket & self._mask]
            oldest = self._start[(self._past + 1) & self._mask]
            if at <= oldest:
                if lines > oldest - at:
                    return -1
            elif lines > self._lines - at:  # it does not fit in front of the end: leave that out
                if lines > oldest:
                    return -1
                at = 0
        slot = (self.ticket + 1) & self._mask
        self._start[slot] = at
        self._end[slot] = at + lines
        self.ticket += 1  # from now on it is out
        return at << _SHIFT

    def give(self, ticket: int) -> None:
        """Give a message back. Raises InvalidState if it is not out."""
        if not self._is_out(ticket):
            self._refuse_ticket(ticket)
        self._start[ticket & self._mask] = ~self._start[ticket & self._mask]  # from now on it is back

    def is_out(self, ticket: int) -> bool:
        """Whether this message was taken, and was not given back yet."""
        return self._is_out(ticket)

    def _is_out(self, ticket: int) -> bool:
        """As `is_out`."""
        return self._past < ticket <= self.ticket and self._start[ticket & self._mask] >= 0

    def keep(self, owned: bytearray) -> None:
        """Give back every message that is out and not `owned`: one byte for each slot, by the last bits of a number."""
        if len(owned) != self._mask + 1:
            raise ValueError(f"{len(owned)} bytes for {self._mask + 1} slots")
        for ticket in range(self._past + 1, self.ticket + 1):
            if self.is_out(ticket) and not owned[ticket & self._mask]:
                self.give(ticket)

    def _settle(self) -> int:
        """Pass over what was given back, as far as the oldest message that is out; how many follow from there."""
        past = self._past
        while past != self.ticket and self._start[(past + 1) & self._mask] < 0:
            past += 1
        self._past = past
        return self.ticket - past

    def _refuse_ticket(self, ticket: int) -> NoReturn:
        raise InvalidState(f"message {ticket} of an arena is not out", ticket=ticket)

    def count(self) -> int:
        """Messages whose memory is not free: those that are out, and those that wait for an older one."""
        return self._settle()

    def space(self) -> int:
        """Bytes that are free; a message needs them in one piece."""
        if self._settle() == 0:
            return self.size
        at = self._end[self.ticket & self._mask]
        oldest = self._start[(self._past + 1) & self._mask]
        return (oldest - at if at <= oldest else self._lines - at + oldest) << _SHIFT

    @property
    def out(self) -> int:
        """As `count`."""
        return self.count()

    @property
    def free(self) -> int:
        """As `space`."""
        return self.space()

    def oldest(self) -> tuple[int, int]:
        """(number, bytes) of the oldest message that is out; (-1, 0) if none is."""
        if self._settle() == 0:
            return -1, 0
        slot = (self._past + 1) & self._mask
        return self._past + 1, (self._end[slot] - self._start[slot]) << _SHIFT
