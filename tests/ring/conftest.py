"""A split queue in a bytearray, both halves of vqshm on it, and a hand that writes into the rings what it likes.

What the hand writes is packed with `struct` after the text of the specification; nothing of vqshm's own is used for it.
"""

from __future__ import annotations

import struct

import pytest

from vqshm.errors import PeerViolation, QueueBroken
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout

BASE = 0x1_0000
BUFFER_BYTES = 0x1_0000
ENTRIES = 4  # of an indirect table of the driver half


class Rig:
    """One queue of `size`; `driver` and `device` are made when first asked for, at position `start`."""

    def __init__(self, size=8, *, event_idx=False, indirect=True, strict=True, start=0, name="queue", memory=None):
        self.size = size
        self.start = start
        self.strict = strict
        self.layout = SplitLayout.at(BASE, size)
        self.tables = self.layout.end  # the driver's own indirect tables
        self.buffers = self.tables + size * ENTRIES * 16
        self.bytes = bytearray(self.buffers + BUFFER_BYTES - BASE)
        self.end = BASE + len(self.bytes)
        self.memory = (memory or GuestMemory)([(BASE, self.bytes)])
        self.config = QueueConfig(self.layout, event_idx=event_idx, indirect=indirect, name=name)
        self.avail_idx = start
        self._driver = self._device = None
        self.poke_idx(avail=start, used=start)

    @property
    def driver(self):
        if self._driver is None:
            self._driver = self.config.driver(self.memory, indirect_tables=(self.tables, ENTRIES))
            self._driver.seek(self.start)
        return self._driver

    @property
    def device(self):
        if self._device is None:
            self._device = self.config.device(self.memory, strict=self.strict)
            self._device.seek(self.start, self.start)
        return self._device

    # -- looking -------------------------------------------------------------------------------------------------------

    def peek(self, address, count):
        return bytes(self.bytes[address - BASE : address - BASE + count])

    def word(self, address):
        return struct.unpack("<H", self.peek(address, 2))[0]

    def desc(self, index, table=None):
        """(addr, len, flags, next)"""
        return struct.unpack("<QIHH", self.peek((self.layout.desc_table if table is None else table) + 16 * index, 16))

    @property
    def avail(self):
        """idx of the available ring."""
        return self.word(self.layout.avail_ring + 2)

    @property
    def used(self):
        """idx of the used ring."""
        return self.word(self.layout.used_ring + 2)

    # -- the hand ------------------------------------------------------------------------------------------------------

    def poke(self, address, data):
        self.bytes[address - BASE : address - BASE + len(data)] = data

    def poke_desc(self, index, addr, length, flags=0, following=0, *, table=None):
        at = (self.layout.desc_table if table is None else table) + 16 * index
        self.poke(at, struct.pack("<QIHH", addr, length, flags, following))

    def poke_idx(self, *, avail=None, used=None):
        if avail is not None:
            self.poke(self.layout.avail_ring + 2, struct.pack("<H", avail & 0xFFFF))
        if used is not None:
            self.poke(self.layout.used_ring + 2, struct.pack("<H", used & 0xFFFF))

    def poke_avail_slot(self, position, head):
        self.poke(self.layout.avail_ring + 4 + 2 * (position % self.size), struct.pack("<H", head))

    def poke_used_slot(self, position, head, written=0):
        self.poke(self.layout.used_ring + 4 + 8 * (position % self.size), struct.pack("<II", head, written))

    def poke_flags(self, *, avail=None, used=None):
        if avail is not None:
            self.poke(self.layout.avail_ring, struct.pack("<H", avail))
        if used is not None:
            self.poke(self.layout.used_ring, struct.pack("<H", used))

    def poke_event(self, *, used_event=None, avail_event=None):
        if used_event is not None:
            self.poke(self.layout.avail_ring + 4 + 2 * self.size, struct.pack("<H", used_event & 0xFFFF))
        if avail_event is not None:
            self.poke(self.layout.used_ring + 4 + 8 * self.size, struct.pack("<H", avail_event & 0xFFFF))

    def offer(self, *heads):
        """As a foreign driver: make the chains at `heads` available."""
        for head in heads:
            self.poke_avail_slot(self.avail, head)
            self.poke_idx(avail=self.avail + 1)

    def give_back(self, head, written=0):
        """As a foreign device: return the chain at `head`."""
        self.poke_used_slot(self.used, head, written)
        self.poke_idx(used=self.used + 1)


def stopped(queue, violation):
    """Assert that `queue` is broken by `violation` and refuses, without a look at the rings, to go on."""
    assert isinstance(violation, PeerViolation)
    assert isinstance(violation, ValueError)
    assert violation.facts["queue"] == queue.name
    assert str(violation).startswith(f"{queue.name}: ")
    assert (type(queue.broken), str(queue.broken)) == (type(violation), str(violation))
    assert queue.broken.__traceback__ is None  # it would keep the frames, and these the memory
    calls = [queue.enable_notification]
    if hasattr(queue, "pop"):
        calls += [queue.pop, queue.pop_head, queue.available, lambda: list(queue), lambda: queue.chain(0)]
        calls += [lambda: queue.add_used(0, 0)]
    else:
        calls += [queue.reap, queue.used, lambda: queue.add([(BASE, 1)])]
    for call in calls:
        with pytest.raises(QueueBroken, match="reset it to go on") as caught:
            call()
        assert caught.value.__cause__ is queue.broken
        assert not isinstance(caught.value, PeerViolation)


@pytest.fixture(scope="session")
def rig():
    """The class itself: each test makes its own, and one for each example of Hypothesis."""
    return Rig


@pytest.fixture(scope="session")
def assert_stopped():
    return stopped
