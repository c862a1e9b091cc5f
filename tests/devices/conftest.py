"""A loopback for handlers: both halves of a queue over one piece of memory, no process and no waiting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout

BASE = 0x10000
SEAM = BASE + 0x20003  # two regions touch here: a buffer across it has two views
SIZE = 0x200000
QUEUE_SIZE = 128
WRITE, NEXT = 2, 1


class Loopback:
    """Offers chains to a handler. `offer` lays buffers out; `raw` takes the descriptors as a hostile driver wrote them.

    `cuts` and `room_cuts`: offsets at which the readable bytes and the writable bytes are split into descriptors.
    """

    def __init__(self, handler: Any, *, strict: bool = True, indirect: bool = False) -> None:
        self.handler = handler
        split = SEAM - BASE & ~7  # a region starts on an 8-byte boundary
        self.memory = GuestMemory([(BASE, bytearray(split)), (BASE + split, bytearray(SIZE - split))])
        self.layout = SplitLayout.at(BASE, QUEUE_SIZE)
        config = QueueConfig(self.layout, indirect=indirect)
        self.tables = self.layout.end
        self.buffers = self.tables + QUEUE_SIZE * QUEUE_SIZE * 16 if indirect else self.tables
        self.driver = config.driver(self.memory, indirect_tables=(self.tables, QUEUE_SIZE) if indirect else None)
        self.device = config.device(self.memory, strict=strict)
        self.written = 0

    def offer(self, readable: bytes, room: int, cuts: Sequence[int] = (), room_cuts: Sequence[int] = ()) -> bytes:
        """One chain through the handler; the bytes it wrote."""
        addresses = self._place(len(readable), cuts)
        done = 0
        for address, count in addresses:
            self.memory.write(address, readable[done : done + count])
            done += count
        answers = self._place(room, room_cuts, behind=addresses)
        for address, count in answers:
            self.memory.write(address, b"\xee" * count)
        token = self.driver.add(addresses, answers)
        chain = self.device.pop()
        assert chain is not None
        self.device.add_used(chain.head_index, self.handler.handle(chain))
        assert self.driver.reap() is not None
        assert token == chain.head_index
        assert self.driver.in_flight == 0
        whole = b"".join(self.memory.read(address, count) for address, count in answers)
        self.written = self.device_wrote(chain.head_index)
        assert len(whole) == room
        return whole[: self.written]

    def raw(self, *descriptors: tuple[int, int, int]) -> int:
        """Serve a chain of (address, bytes, flags) that no driver half would offer; what the handler returned."""
        for i, (address, count, flags) in enumerate(descriptors):
            more = NEXT if i + 1 < len(descriptors) else 0
            fields = address.to_bytes(8, "little") + count.to_bytes(4, "little")
            fields += (flags | more).to_bytes(2, "little") + (i + 1).to_bytes(2, "little")
            self.memory.write(self.layout.desc_table + 16 * i, fields)
        return self.handler.handle(self.device.chain(0))

    def device_wrote(self, head: int) -> int:
        """The length in the used element last added."""
        slot = (self.device.next_used - 1) % QUEUE_SIZE
        element = self.memory.read(self.layout.used_ring + 4 + 8 * slot, 8)
        assert int.from_bytes(element[:4], "little") == head
        return int.from_bytes(element[4:], "little")

    def _place(self, count: int, cuts: Sequence[int], behind: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
        """(address, bytes) of each buffer: at odd addresses, with a gap after each, so that none adjoins the next."""
        position = sum(behind[-1]) + 5 if behind else self.buffers + 1
        places = []
        edges = sorted({0, count, *(cut for cut in cuts if 0 < cut < count)})
        for start, end in pairwise(edges):
            places.append((position, end - start))
            position = (position + end - start + 5) | 1
        assert position <= BASE + SIZE
        return places


@pytest.fixture(params=["strict", "seed", "indirect"])
def loopback(request):
    """Make a `Loopback` of a handler: in strict policy, in seed policy, and with indirect tables."""

    def make(handler: Any) -> Loopback:
        return Loopback(handler, strict=request.param != "seed", indirect=request.param == "indirect")

    return make


@pytest.fixture
def hostile():
    """Make a `Loopback` in seed policy, where a handler meets chains that nobody has checked."""
    return lambda handler: Loopback(handler, strict=False)
