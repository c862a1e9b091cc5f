"""A lane in a bytearray: an outlet, an inlet, doubles of bell and keeper, and a hand that writes into the rings.

What the hand writes is packed with `struct` after the text of the specification; nothing of vqshm's own is used for it.
"""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from vqshm.errors import InvalidState, QueueBroken
from vqshm.lane.inlet import Inlet
from vqshm.lane.outlet import Outlet
from vqshm.memory import GuestMemory
from vqshm.ring import SplitLayout

BASE = 0x1_0000


class Bell:
    """Counts how often it was rung; `ring` then runs, as if another thread had its turn."""

    def __init__(self):
        self.rung = 0
        self.ring = None

    def signal(self):
        self.rung += 1
        if self.ring is not None:
            self.ring()


class Keeper:
    """Instead of sleeping, `meanwhile` runs: the other side's turn. Without one, time is up."""

    def __init__(self, end):
        self.end = end
        self.meanwhile = None
        self.sleeps = []  # what `after` was, per sleep of an outlet
        self.told = []  # violations
        self.shown = 0

    def sleep(self, _deadline, after=0):
        self.sleeps.append(after)
        if self.meanwhile is None:
            return False
        return self.meanwhile() is not False

    def lie_down(self, _deadline):
        return False

    def get_ready(self, _deadline=None):
        if self.end.broken is not None:
            raise QueueBroken(f"broken: {self.end.broken}")
        raise InvalidState("not ready")

    def broke(self, error):
        self.told.append(error)

    def show_counts(self):
        self.shown += 1

    def stalled(self):
        return "the double was asked"


class Lane:
    """Both ends at position `start`; `out` and `into` are their keepers."""

    def __init__(self, size=8, area=4096, *, event_idx=True, indirect=True, start=0):
        self.size = size
        self.layout = SplitLayout.at(BASE, size)
        self.area = self.layout.end
        self.bytes = bytearray(self.area + area - BASE)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.outlet = Outlet(self.memory, self.layout, (self.area, area), Bell(), None, event_idx=event_idx)
        self.inlet = Inlet(self.memory, self.layout, Bell(), None, event_idx=event_idx, indirect=indirect)
        self.out = self.outlet.keeper = Keeper(self.outlet)
        self.into = self.inlet.keeper = Keeper(self.inlet)
        self.poke_idx(avail=start, used=start)
        self.outlet.seek(start)
        self.inlet.seek(start, start)

    def drain(self):
        """Everything that is there, as bytes, and the sender told that it is gone."""
        got = []
        while self.inlet.available():
            got += self.inlet.recv_many(0xFFFF, 0)
        self.inlet.tell()
        return got

    def assert_at_rest(self):
        """Everything was given back, to both."""
        self.inlet.tell()
        self.outlet.reclaim()
        assert self.inlet.lent == 0
        assert self.outlet.in_flight == 0
        assert self.outlet.reserved == 0
        assert self.outlet.calls == 0
        assert self.outlet.num_free == self.size
        assert self.outlet.arena.out == 0
        assert self.outlet.arena.free == self.outlet.arena.size

    @staticmethod
    def elsewhere(attempt):
        """What another thread gets by an attempt."""
        with ThreadPoolExecutor(1) as other:
            return other.submit(attempt).result()

    # -- the hand ------------------------------------------------------------------------------------------------------

    def peek(self, address, count):
        return bytes(self.bytes[address - BASE : address - BASE + count])

    def poke(self, address, data):
        self.bytes[address - BASE : address - BASE + len(data)] = data

    def word(self, address):
        return struct.unpack("<H", self.peek(address, 2))[0]

    def desc(self, index):
        """(addr, len, flags, next)"""
        return struct.unpack("<QIHH", self.peek(self.layout.desc_table + 16 * index, 16))

    def poke_desc(self, index, addr, length, flags=0, following=0, *, table=None):
        at = (self.layout.desc_table if table is None else table) + 16 * index
        self.poke(at, struct.pack("<QIHH", addr, length, flags, following))

    def poke_idx(self, *, avail=None, used=None):
        for ring, idx in ((self.layout.avail_ring, avail), (self.layout.used_ring, used)):
            if idx is not None:
                self.poke(ring + 2, struct.pack("<H", idx & 0xFFFF))

    @property
    def avail(self):
        """idx of the available ring."""
        return self.word(self.layout.avail_ring + 2)

    @property
    def used(self):
        """idx of the used ring."""
        return self.word(self.layout.used_ring + 2)

    def offer(self, *heads):
        """As a foreign driver: make the chains at `heads` available."""
        for head in heads:
            self.poke(self.layout.avail_ring + 4 + 2 * (self.avail % self.size), struct.pack("<H", head & 0xFFFF))
            self.poke_idx(avail=self.avail + 1)

    def give_back(self, head, written=0):
        """As a foreign device: return the chain at `head`."""
        self.poke(self.layout.used_ring + 4 + 8 * (self.used % self.size), struct.pack("<II", head, written))
        self.poke_idx(used=self.used + 1)


@pytest.fixture(scope="session")
def lane():
    """The class itself: each test makes its own, and one for each example of Hypothesis."""
    return Lane
