# cython: nonecheck=False, initializedcheck=False
"""Holdings: what is out of a lane's outlet, and who owns the room it takes in the arena.

Room has one owner: a chain in flight (`_ticket`), an open reservation (`_lents`), or a call whose answer lies in it
(`_state`). To become an owner, and to be one no more, is one store each; the counters follow from these. While they do
not, `_torn` says so, and whoever comes next works it out: what nobody owns is free (`_make_whole`). So an exception may
strike the interpreted core between any two steps; compiled, none does.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vqshm.errors import InvalidState
from vqshm.lane.turn import at_work
from vqshm.memory import atomic
from vqshm.memory.arena import Arena
from vqshm.memory.pool import GRAIN
from vqshm.ring.split_driver import DriverQueue

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.memory.lent import Lent
    from vqshm.ring.layout import SplitLayout

_LARGEST = (1 << 32) - GRAIN  # bytes of an arena: a descriptor's length has 32 bits
_TAKING = 3  # what was interrupted, if it was not in the ring half
_NONE, _WAITING, _FORGOTTEN = 0, 1, 2  # states of a call: there is none; no answer yet; and nobody waits for one
_LOST = 3  # and more: it came back, this: given up by the device


class Holdings(DriverQueue):
    """A driver half whose chains are messages in an arena of `count` bytes."""

    __slots__ = (
        "_after",
        "_lents",
        "_orphans",
        "_state",
        "_ticket",
        "arena",
        "bytes_out",
        "calls",
        "messages",
        "reserved",
    )

    def __init__(self, memory: Memory, layout: SplitLayout, count: int, *, event_idx: bool, name: str) -> None:
        super().__init__(memory, layout, event_idx=event_idx, name=name)
        self.arena = Arena(min(count, _LARGEST), layout.size)
        self._ticket = array("q", bytes(8 * layout.size))  # per head in flight: its message's number in the arena
        # By the last bits of a number, while that is out:
        self._state = array("q", bytes(8 * layout.size))  # of a call
        self._lents: list[Lent | None] = [None] * layout.size  # of an open reservation, where an exception can strike
        self.calls = 0  # in `_state`
        self.reserved = 0  # in `_lents`; each has a descriptor set aside, which `num_free` does not count
        self._orphans: list[tuple[int, Lent | None]] = []  # dropped: reservations, with what they lend, and calls
        self.messages = self.bytes_out = 0  # sent so far
        self._after: tuple[int, int, int] | None = None  # position, messages and bytes_out behind the last one: `_note`

    def _void(self) -> None:
        """As after a reset: nothing is out, and nobody owns anything."""
        self.arena.clear()
        for slot in range(self.size):
            self._state[slot] = _NONE
            self._lents[slot] = None
        self.calls = 0
        self.reserved = 0
        self._orphans.clear()
        self._after = None
        self.detach_unused()

    def holds(self) -> str:
        """Who holds what: for the message of a deadline."""
        ticket, count = self.arena.oldest()
        if ticket < 0:
            return "nothing is out"
        return (
            f"{self.in_flight} of {self.messages} messages are out, {self.arena.size - self.arena.space()} of "
            f"{self.arena.size} bytes; the oldest takes {count} bytes"
        )

    def _drop(self, ticket: int) -> None:
        """Give room back that was taken for nothing."""
        self.arena.give(ticket)
        self._torn = 0

    def _is_open(self, ticket: int, lent: Lent) -> bool:
        """Whether this reservation, which was not told that it is over, is open."""
        if not atomic.INTERRUPTIBLE:
            return self.arena.is_out(ticket)
        if self._torn:
            self._mend()
        return self._lents[ticket & self._mask] is lent

    def _cancel_reserved(self, ticket: int) -> None:
        """Give back the room of an open reservation."""
        if atomic.INTERRUPTIBLE:
            self._torn = _TAKING
            self._lents[ticket & self._mask] = None  # from now on nobody owns it
        self.num_free += 1
        self.reserved -= 1
        self.arena.give(ticket)
        self._torn = 0

    def collect(self) -> None:
        """Take back what was dropped: reservations, once nobody can write to their room any more, and calls."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        for orphan in self._orphans[:]:
            ticket, lent = orphan
            if lent is None:
                self._forget_call(ticket)
            elif lent.in_use:
                continue
            else:
                lent.close()
                if self._is_open(ticket, lent):
                    self._cancel_reserved(ticket)
            self._orphans.remove(orphan)

    def _forget_call(self, ticket: int) -> None:
        """Nobody waits for this answer any more. Does nothing if that is known."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        if self.arena.is_out(ticket):
            if self._state[ticket & self._mask] == _WAITING:
                self._state[ticket & self._mask] = _FORGOTTEN
            elif self._state[ticket & self._mask] >= _LOST:
                self._end_call(ticket)

    def _end_call(self, ticket: int) -> None:
        """The answer to this call was fetched, or is not wanted: its room is free. Does nothing if that is known."""
        if atomic.INTERRUPTIBLE and self._torn:
            self._mend()
        if self.arena.is_out(ticket):
            if atomic.INTERRUPTIBLE:
                self._torn = _TAKING
            self._state[ticket & self._mask] = _NONE  # from now on nobody owns it
            self.calls -= 1
            self.arena.give(ticket)
            self._torn = 0

    def _note(self, count: int) -> None:
        """Note where the counters will stand when a message of `count` bytes is in the ring."""
        self._after = (self._avail_idx + 1) & 0xFFFF, self.messages + 1, self.bytes_out + count

    def _make_whole(self) -> None:
        """What is in flight, reserved or a call's is known, and all else follows from it.

        Raises InvalidState if whoever left it torn is still at work: in another thread, or below a signal's handler.
        """
        if not self._torn:
            return
        if at_work(self):
            raise InvalidState(f"{self.name}: a call of this end is at work already")
        for head in range(self.size):
            if self._state[self._ticket[head] & self._mask] >= _LOST:
                self._capacity[head] = 0  # it was noted, and not accepted
        self._mend_ring()
        self.arena.keep(self._find_owned())
        self.calls = sum(state != _NONE for state in self._state)
        self.reserved = sum(lent is not None for lent in self._lents)
        self.num_free -= self.reserved
        if self._after is not None and self._after[0] == self._avail_idx:
            _, self.messages, self.bytes_out = self._after
        self._torn = 0

    def _find_owned(self) -> bytearray:
        """Which slots of the arena somebody owns; who owns one in vain, or twice, loses it."""
        owned = bytearray(self.size)
        for head in range(self.size):
            if self._capacity[head]:
                slot = self._ticket[head] & self._mask
                owned[slot] = 1
                self._lents[slot] = None  # it was sent
        for slot in range(self.size):
            if not owned[slot] and self._state[slot] in {_WAITING, _FORGOTTEN}:
                self._state[slot] = _NONE  # this call was never offered
            if self._lents[slot] is not None or self._state[slot] >= _LOST:
                owned[slot] = 1
        return owned
