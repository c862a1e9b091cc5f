"""Death as an exception out of the n-th store: a window is led word by word through a hand that counts.

What was stored stays, everything else is forgotten, as at a SIGKILL.
"""

from __future__ import annotations

from vqshm.memory import GuestMemory
from vqshm.memory.atomic import Region


class Killed(BaseException):
    """The process is no more."""


class Hand:
    """Does what a window would do, until the stores are used up."""

    def __init__(self, memory, address):
        self.memory = memory
        self.address = address

    def load(self, offset, width):
        return int.from_bytes(self.memory.read(self.address + offset, width), "little")

    get = load

    def store(self, offset, width, value):
        if self.memory.left == 0:
            raise Killed
        self.memory.left -= 1
        self.memory.stores += 1
        self.memory.write(self.address + offset, value.to_bytes(width, "little"))

    put = store


class MortalMemory(GuestMemory):
    """Guest memory of a process that has only so many stores `left`."""

    left = -1  # for ever
    stores = 0  # so far

    def window(self, address, count, alignment):
        return Region(bytearray(), 0, 0, Hand(self, address))
