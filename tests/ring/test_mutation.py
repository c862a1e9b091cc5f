"""The other side rewrites the rings while they are read (A20): each word is fetched once, and that copy is what counts.

Two ways to see it. Memory that answers every fetch of a word differently, and writes down who asked: what is fetched
twice is caught for certain. And a real process that rewrites the table as fast as it can while the device takes chains.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import pytest

from vqshm import core, errors
from vqshm.memory import GuestMemory, Region
from vqshm.ring import QueueConfig, SplitLayout

NEXT, WRITE, INDIRECT = 1, 2, 4
HOSTILE = {2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


class Shifty:
    """A window onto memory whose every word is as it should be when it is first read, and hostile from then on."""

    def __init__(self, memory, address):
        self.memory, self.address = memory, address

    def get(self, offset, width):
        at = self.address + offset
        self.memory.fetched[at, width] += 1
        if self.memory.fetched[at, width] > 1 and self.memory.hostile:
            return HOSTILE[width]
        return int.from_bytes(self.memory.read(at, width), "little")

    load = get

    def put(self, offset, width, value):
        self.memory.write(self.address + offset, value.to_bytes(width, "little"))

    store = put


class ShiftyMemory(GuestMemory):
    """Guest memory that counts the fetches of each word, and turns hostile."""

    def __init__(self, regions):
        super().__init__(regions)
        self.fetched = Counter()
        self.hostile = True

    def window(self, address, count, alignment):
        return Region(bytearray(), 0, 0, Shifty(self, address))

    def bytes_fetched(self):
        """How often each byte was fetched."""
        seen = Counter()
        for (at, width), times in self.fetched.items():
            for i in range(width):
                seen[at + i] += times
        return seen


def indirect_chain(r):
    """One direct descriptor, then a table of three."""
    r.poke_desc(2, r.buffers, 8, NEXT, 5)
    r.poke_desc(5, r.tables, 48, INDIRECT)
    r.poke_desc(0, r.buffers + 8, 8, NEXT, 2, table=r.tables)
    r.poke_desc(2, r.buffers + 16, 8, NEXT | WRITE, 1, table=r.tables)
    r.poke_desc(1, r.buffers + 24, 8, WRITE, 0, table=r.tables)
    r.offer(2)
    return [r.buffers + 8 * i for i in range(4)]


@pytest.mark.fault("A20")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])
def test_the_device_fetches_each_word_once(rig, strict):
    """idx once for a look, the ring slot, and sixteen bytes of each descriptor of the chain; nothing else."""
    r = rig(memory=ShiftyMemory, strict=strict)
    expected = indirect_chain(r)
    chain = r.device.pop()
    assert [d.addr for d in chain] == expected
    seen = r.memory.bytes_fetched()
    assert set(seen.values()) == {1}
    table = r.layout.desc_table
    entries = [table + 16 * 2, table + 16 * 5, *(r.tables + 16 * i for i in range(3))]
    fields = {at + i for at in entries for i in range(16)}
    ring = {r.layout.avail_ring + i for i in (2, 3, 4, 5)}
    assert set(seen) == fields | ring


@pytest.mark.fault("A20")
def test_what_was_checked_is_what_is_used(rig):
    """The chain is checked and then used from one copy, although every second look would show something else."""
    r = rig(memory=ShiftyMemory)
    expected = indirect_chain(r)
    chain = r.device.pop()
    for _ in range(2):
        assert [(d.addr, d.len) for d in chain] == [(addr, 8) for addr in expected]
    assert (chain.readable_bytes, chain.writable_bytes) == (16, 16)
    chain.writer().write_all(bytes(16))
    r.device.add_used(chain.head_index, 16)
    assert r.device.broken is None


@pytest.mark.fault("A20")
def test_the_driver_fetches_each_word_once(rig):
    """idx, and id and length of one element; never its own descriptors or available ring."""
    r = rig(memory=ShiftyMemory)
    r.driver.add([(r.buffers, 8)], [(r.buffers + 8, 8)])
    r.driver.add([(r.buffers, 8)])
    assert not r.memory.fetched
    r.give_back(0, 8)
    assert r.driver.reap() == (0, 8)
    seen = r.memory.bytes_fetched()
    assert set(seen.values()) == {1}
    used = r.layout.used_ring
    assert set(seen) == {used + i for i in (2, 3, *range(4, 12))}


@pytest.mark.fault("A20")
def test_a_word_that_is_hostile_at_the_next_look_is_found_then(rig):
    """The memory above does turn hostile: a second look at avail.idx shows 65535."""
    r = rig(memory=ShiftyMemory)
    indirect_chain(r)
    r.device.pop()
    with pytest.raises(errors.InvalidAvailRingIndex):
        r.device.pop()
    assert r.device.next_avail == 1


# -- a real race -------------------------------------------------------------------------------------------------------

BASE = 0x1_0000
BYTES = 0x1_0000
STOP = BYTES - 1
A, B = BASE + 0x8000, BASE + 0x9000  # two buffers
TABLE = BASE + 0x4000

MUTATOR = """
import itertools, mmap, sys
path, stop, words = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
with open(path, "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
cells = memoryview(memory).cast("Q")
turns = [itertools.cycle([(offset // 8, value) for value in values]) for offset, values in words]
while not memory[stop]:
    for turn in turns:
        cell, value = next(turn)
        cells[cell] = value
"""


@contextmanager
def rewriting(path, words):
    """A process that goes round the values of each word, (offset, values), as long as the block lasts."""
    child = subprocess.Popen([sys.executable, "-c", MUTATOR, str(path), str(STOP), repr(words)])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def tail(length, flags=0, following=0):
    """The second eight bytes of a descriptor."""
    return length | flags << 32 | following << 48


# The two words of the descriptor that is rewritten, and how its chain may come out.
ADDRESSES = [A, B, 2**64 - 1, 0]
TAILS = [tail(16), tail(32, WRITE), tail(0xFFFF_FFFF), tail(8, NEXT, 0), tail(8, NEXT, 9999), tail(15, INDIRECT)]
OUTCOMES = {
    *((addr, length, flags) for addr in (A, B) for length, flags in ((16, 0), (32, WRITE))),
    *("GuestMemory", "AddressOverflow", "DescriptorLoop", "InvalidDescriptorIndex", "InvalidIndirectDescriptorTable"),
    *("ChainTooLong", "InvalidChain"),  # by a descriptor that follows itself and changes its mind
}


def outcome(device):
    try:
        chain = device.pop()
    except errors.PeerViolation as violation:
        return type(violation).__name__
    assert device.broken is None
    descriptors = list(chain)
    readable = [d for d in descriptors if not d.is_write_only]
    assert chain.readable_bytes == sum(d.len for d in readable) == chain.reader().available_bytes
    assert chain.writable_bytes == sum(d.len for d in descriptors) - chain.readable_bytes
    assert chain.writer().available_bytes == chain.writable_bytes
    last = descriptors[-1]
    return last.addr, last.len, last.flags


def race(path, words, head_chain=lambda guest, layout: None):
    """Take the chain at head 0 again and again, while `words` are rewritten; the outcomes seen."""
    path.write_bytes(bytes(BYTES))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    layout = SplitLayout.at(BASE, 8)
    guest = GuestMemory([(BASE, memory)])
    head_chain(guest, layout)
    guest.write(layout.avail_ring, bytes([0, 0, 1, 0, 0, 0]))  # flags, idx 1, ring[0] = 0
    for offset, values in words:
        guest.write(BASE + offset, values[0].to_bytes(8, "little"))
    config = QueueConfig(layout, indirect=True)
    seen = Counter()
    with rewriting(path, words) as child:
        while seen.total() < (10_000 if core.kind() == "compiled" else 3_000) or len(seen) < 3:
            seen[outcome(config.device(guest))] += 1
            assert child.poll() is None
    return seen


@pytest.mark.fault("A20")
def test_a_descriptor_rewritten_by_another_process_is_one_of_its_values_or_a_named_error(tmp_path):
    table = SplitLayout.at(BASE, 8).desc_table - BASE
    assert set(race(tmp_path / "memory", [(table, ADDRESSES), (table + 8, TAILS)])) <= OUTCOMES


@pytest.mark.fault("A20")
def test_an_indirect_table_rewritten_by_another_process_is_one_of_its_values_or_a_named_error(tmp_path):
    def refer(guest, layout):
        guest.write(layout.desc_table, TABLE.to_bytes(8, "little") + tail(64, INDIRECT).to_bytes(8, "little"))

    seen = race(tmp_path / "memory", [(TABLE - BASE, ADDRESSES), (TABLE - BASE + 8, TAILS)], refer)
    assert set(seen) <= OUTCOMES - {"InvalidIndirectDescriptorTable"} | {"InvalidIndirectDescriptor"}


@pytest.mark.fault("A20")
def test_a_ring_rewritten_by_another_process_gives_one_of_its_heads_or_a_named_error(tmp_path):
    """avail.idx and the slot are two words, and may be of two moments; but each is one that was written."""

    def describe(guest, layout):
        for i, addr in enumerate((A, B)):
            guest.write(layout.desc_table + 16 * i, addr.to_bytes(8, "little") + tail(16).to_bytes(8, "little"))

    ring = SplitLayout.at(BASE, 8).avail_ring - BASE
    values = [idx << 16 | head << 32 for idx, head in ((1, 0), (1, 1), (1, 8), (1, 0xFFFF), (9, 0), (65535, 1))]
    seen = race(tmp_path / "memory", [(ring, values)], describe)
    assert set(seen) <= {(A, 16, 0), (B, 16, 0), "InvalidDescriptorIndex", "InvalidAvailRingIndex"}
