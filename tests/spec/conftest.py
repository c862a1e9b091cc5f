"""A split queue in a bytearray, with both halves of vqshm on it, and eyes of its own for the bytes.

What the tests see of the rings is parsed here with `struct`, after the text of the specification; nothing of vqshm's own
parsing is used for it. What a test pokes into the rings is what another implementation could have written.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from vqshm.memory import GuestMemory
from vqshm.ring import DeviceQueue, QueueConfig, SplitLayout

NEXT, WRITE, INDIRECT = 1, 2, 4
BASE = 0x7000_0000
BUFFERS_AT = 0x4_0000  # offset of the buffer area; the rings, and the indirect tables, lie before it
TABLES_AT = 0x2_0000
BYTES = 0x8_0000


class Desc(NamedTuple):
    addr: int
    len: int
    flags: int
    next: int


class Ring(NamedTuple):
    flags: int
    idx: int
    ring: tuple
    event: int


class Bench:
    """One queue of `size` descriptors; `driver` and `device` are made when first asked for."""

    def __init__(self, size=8, *, event_idx=False, indirect=False, strict=True):
        self.size = size
        self.bytes = bytearray(BYTES)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.layout = SplitLayout.at(BASE, size)
        self.config = QueueConfig(self.layout, event_idx=event_idx, indirect=indirect)
        self.strict = strict
        self.entries = size
        self._taken = 0
        self._driver = self._device = None

    @property
    def driver(self):
        if self._driver is None:
            self._driver = self.config.driver(self.memory, indirect_tables=(BASE + TABLES_AT, self.entries))
        return self._driver

    @property
    def device(self) -> DeviceQueue:
        if self._device is None:
            self._device = self.config.device(self.memory, strict=self.strict)
        return self._device

    def buffer(self, count, fill=b""):
        """(guest address, bytes) of a fresh buffer."""
        address = BASE + BUFFERS_AT + self._taken
        self._taken = (self._taken + count + 15) // 16 * 16
        assert BUFFERS_AT + self._taken <= BYTES
        self.poke(address, fill)
        return address, count

    # -- looking -----------------------------------------------------------------------------------------------------------

    def peek(self, address, count):
        return bytes(self.bytes[address - BASE : address - BASE + count])

    def desc(self, index, table=None):
        at = (self.layout.desc_table if table is None else table) + 16 * index
        return Desc(*struct.unpack("<QIHH", self.peek(at, 16)))

    def chain(self, head):
        """The descriptors in the order of the chain, those of the main table first; raises if it does not end."""
        found = []
        index, table, limit = head, None, self.size
        while True:
            found.append(self.desc(index, table))
            assert len(found) <= 2 * self.size, "the chain does not end"
            last = found[-1]
            if last.flags & INDIRECT:
                index, table, limit = 0, last.addr, last.len // 16
            elif last.flags & NEXT:
                index = last.next
            else:
                return found
            assert index < limit

    def buffers(self, head):
        """The descriptors of the chain that describe buffers."""
        return [d for d in self.chain(head) if not d.flags & INDIRECT]

    def avail(self):
        words = struct.unpack(f"<{self.size + 3}H", self.peek(self.layout.avail_ring, 6 + 2 * self.size))
        return Ring(words[0], words[1], words[2:-1], words[-1])

    def used(self):
        flags, idx = struct.unpack("<HH", self.peek(self.layout.used_ring, 4))
        ring = struct.iter_unpack("<II", self.peek(self.layout.used_ring + 4, 8 * self.size))
        event = struct.unpack("<H", self.peek(self.layout.used_ring + 4 + 8 * self.size, 2))[0]
        return Ring(flags, idx, tuple(ring), event)

    def snapshot(self, *without):
        """All bytes, those of the given (address, count) ranges blanked."""
        copy = bytearray(self.bytes)
        for address, count in without:
            copy[address - BASE : address - BASE + count] = bytes(count)
        return bytes(copy)

    @property
    def used_area(self):
        return self.layout.used_ring, 6 + 8 * self.size

    # -- being the other side ----------------------------------------------------------------------------------------------

    def poke(self, address, data):
        self.bytes[address - BASE : address - BASE + len(data)] = data

    def poke_desc(self, index, addr, length, flags=0, following=0, table=None):
        at = (self.layout.desc_table if table is None else table) + 16 * index
        self.poke(at, struct.pack("<QIHH", addr, length, flags, following))

    def poke_avail(self, *, flags=None, idx=None, event=None):
        self._poke_words(self.layout.avail_ring, 4 + 2 * self.size, flags, idx, event)

    def poke_used(self, *, flags=None, idx=None, event=None):
        self._poke_words(self.layout.used_ring, 4 + 8 * self.size, flags, idx, event)

    def _poke_words(self, base, event_at, flags, idx, event):
        for at, value in ((0, flags), (2, idx), (event_at, event)):
            if value is not None:
                self.poke(base + at, struct.pack("<H", value))

    def offer(self, head):
        """As a foreign driver: make the chain at `head` available."""
        idx = self.avail().idx
        self.poke(self.layout.avail_ring + 4 + 2 * (idx % self.size), struct.pack("<H", head))
        self.poke_avail(idx=(idx + 1) & 0xFFFF)

    def give_back(self, head, written=0):
        """As a foreign device: return the chain at `head`."""
        idx = self.used().idx
        self.poke(self.layout.used_ring + 4 + 8 * (idx % self.size), struct.pack("<II", head, written))
        self.poke_used(idx=(idx + 1) & 0xFFFF)


@pytest.fixture(scope="session")
def bench():
    """The class itself: each test makes its own, and one for each example of Hypothesis."""
    return Bench


@pytest.fixture(scope="session")
def traces():
    """Every access to shared memory of a few operations, in order: {operation: [[function, area, offset, value], …]}.

    Only the interpreted core can be listened to, so it runs in a process of its own; the compiled one is built from the
    same source, and what its seam adds is read by a test of its own.
    """
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("trace_order.py")],
        env={**os.environ, "VQSHM_PURE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: [tuple(step) for step in steps] for name, steps in json.loads(done.stdout).items()}
