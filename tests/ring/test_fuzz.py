"""A32: random rings, made to be nearly right, against a small reference that judges the bytes by the text of the rules.

The reference shares nothing with vqshm. Where a descriptor breaks several rules at once it names them all, and the
queue may name any of them; but it must refuse exactly where the reference does, and see exactly the same descriptors
before.
"""

from __future__ import annotations

import itertools
import random
import struct

import pytest

from vqshm import errors
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout
from vqshm.ring.walk import new_walk

NEXT, WRITE, INDIRECT = 1, 2, 4
TOP = 2**64 - 1
REGIONS = ((0x1_0000, 0x4000), (0x1_4000, 0x100), (0x1_5000, 0x200))  # the first two touch
RINGS, TABLES = 0x1_0000, 0x1_3F80  # the tables run into the second region


class Bytes:
    """Guest memory, for the reference: what exists, and what it holds."""

    def __init__(self):
        self.buffers = [(start, bytearray(size)) for start, size in REGIONS]
        self.edges = [start + side for start, size in REGIONS for side in (0, size)]

    def home(self, addr):
        """The (start, buffer) that holds the address, or None."""
        return next(((start, b) for start, b in self.buffers if start <= addr < start + len(b)), None)

    def missing(self, addr, count):
        if addr + count > TOP:
            return {"AddressOverflow"}
        end = addr + count
        while addr < end:
            if (home := self.home(addr)) is None:
                return {"GuestMemory"}
            addr = home[0] + len(home[1])
        return set()

    def read(self, addr, count):
        data = b""
        while len(data) < count:
            start, buffer = self.home(addr + len(data))
            at = addr + len(data) - start
            data += buffer[at : at + count - len(data)]
        return data

    def write(self, addr, data):
        for i, byte in enumerate(data):
            start, buffer = self.home(addr + i)
            buffer[addr + i - start] = byte


def judge(memory, size, table, head, *, strict, indirect):  # noqa: C901, PLR0912 - a list of rules
    """(descriptors, names of the rules that the next one breaks; none at the end of a good chain)"""
    found, index, limit, left = [], head, size, size
    nested = wrote = False
    total = 0
    while True:
        if left == 0:
            return found, {"DescriptorLoop"}
        if index >= limit:
            return found, {"InvalidDescriptorIndex"}
        if gone := memory.missing(table + 16 * index, 16):
            return found, gone
        addr, length, flags, following = struct.unpack("<QIHH", memory.read(table + 16 * index, 16))
        broken = set()
        if flags & INDIRECT:
            if nested or (strict and (not indirect or flags & NEXT)):
                broken.add("InvalidIndirectDescriptor")
            if length % 16 or length // 16 > 65535 or (strict and length == 0):
                broken.add("InvalidIndirectDescriptorTable")
            if strict:
                broken |= memory.missing(addr, length)
            if broken:
                return found, broken
            table, index, nested = addr, 0, True
            limit = left = length // 16
            continue
        if total + length > 2**32 - 1:
            broken.add("ChainTooLong")
        if strict and len(found) == size:
            broken.add("DescriptorLoop")
        if strict and wrote and not flags & WRITE:
            broken.add("InvalidChain")
        if strict and length:
            broken |= memory.missing(addr, length)
        if broken:
            return found, broken
        found.append((addr, length, flags, following))
        total += length
        wrote = wrote or bool(flags & WRITE)
        if not flags & NEXT:
            return found, set()
        index = following
        left -= 1


class Maker:
    """Rings that are nearly right."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.memory = Bytes()
        self.size = self.random.choice([1, 2, 4, 4, 8, 8, 16])
        self.layout = SplitLayout.at(RINGS, self.size)
        self.wildness = self.random.choice([0.0, 0.02, 0.1, 0.3])
        for i in range(self.size):
            self.memory.write(self.layout.desc_table + 16 * i, self.descriptor(self.size, 0.2))
        for i in range(24):
            self.memory.write(TABLES + 16 * i, self.descriptor(6, 0.02))

    def odd(self):
        return self.random.random() < self.wildness

    def descriptor(self, limit, indirect):
        pick = self.random
        addr = 0x1_2000 + pick.randrange(64)
        length = pick.choice([0, 1, 4, 8, 16, 64])
        flags = pick.choice([0, NEXT, NEXT, NEXT | WRITE, WRITE, WRITE])
        following = pick.randrange(limit)
        if pick.random() < indirect:
            flags, addr = INDIRECT | pick.choice([0, 0, WRITE]), TABLES + pick.choice([0, 0, 16, 64, 96, 100])
            length = 16 * pick.randrange(1, 8)
        if self.odd():
            addr = pick.choice([*self.memory.edges, TOP, TOP - 7, 0, pick.getrandbits(64)]) - pick.choice([0, 1, 8, 15])
        if self.odd():
            length = pick.choice([0, 15, 17, 0x100, 0xFFFF_FFFF, -1, -2, 0x10_0000, 0xFFFF_0, pick.getrandbits(32)])
        if self.odd():
            flags = pick.choice([flags | 0x8000, flags ^ INDIRECT, flags ^ NEXT, flags ^ WRITE, pick.getrandbits(16)])
        if self.odd():
            following = pick.choice([limit, limit + 1, 0xFFFF, pick.getrandbits(16)])
        return struct.pack("<QIHH", addr & TOP, length & 0xFFFF_FFFF, flags, following)

    def available(self, start):
        """Heads on offer from position `start`, and avail.idx as it is written."""
        pick = self.random
        heads = pick.sample(range(self.size), pick.randint(0, self.size))
        heads = [pick.choice([self.size, 0xFFFF, pick.randrange(self.size)]) if self.odd() else head for head in heads]
        for i, head in enumerate(heads):
            at = self.layout.avail_ring + 4 + 2 * ((start + i) % self.size)
            self.memory.write(at, struct.pack("<H", head))
        idx = start + len(heads)
        if self.odd():
            idx = pick.choice([start + self.size + 1, start - 1, pick.getrandbits(16)])
        self.memory.write(self.layout.avail_ring, struct.pack("<HH", pick.getrandbits(16), idx & 0xFFFF))
        return idx & 0xFFFF


def fields(chain):
    return [(d.addr, d.len, d.flags, d.next) for d in chain]


def strict_ring(seed):
    """One ring, taken to its end by both; what it came to."""
    maker = Maker(seed)
    start = maker.random.choice([0, 65535, 65536 - maker.size, maker.random.getrandbits(16)])
    indirect = maker.random.random() < 0.9
    idx = maker.available(start)
    memory = maker.memory
    device = QueueConfig(maker.layout, indirect=indirect).device(GuestMemory(memory.buffers))
    device.seek(start, start)
    ahead = (idx - start) & 0xFFFF
    flying = set()
    for i in range(min(ahead, maker.size) + 1 if ahead <= maker.size else 1):
        head = struct.unpack("<H", memory.read(maker.layout.avail_ring + 4 + 2 * ((start + i) % maker.size), 2))[0]
        found = []
        if ahead > maker.size:
            broken = {"InvalidAvailRingIndex"}
        elif i == ahead:
            assert device.pop() is None
            return "end"
        elif head >= maker.size:
            broken = {"InvalidDescriptorIndex"}
        elif head in flying:
            broken = {"InvalidChain"}
        else:
            found, broken = judge(memory, maker.size, maker.layout.desc_table, head, strict=True, indirect=indirect)
        if broken:
            with pytest.raises(errors.PeerViolation) as caught:
                device.pop()
            assert type(caught.value).__name__ in broken, f"seed {seed}: {caught.value}"
            with pytest.raises(errors.QueueBroken):
                device.pop()
            return type(caught.value).__name__
        chain = device.pop()
        assert fields(chain) == found, f"seed {seed}"
        writable = sum(d[1] for d in found if d[2] & WRITE)
        assert (chain.head_index, chain.writable_bytes) == (head, writable)
        assert chain.readable_bytes == sum(d[1] for d in found) - writable
        assert chain.reader().available_bytes == chain.readable_bytes
        assert chain.writer().available_bytes == chain.writable_bytes
        if maker.random.random() < 0.3:
            device.add_used(head, maker.random.randint(0, writable))
        else:
            flying.add(head)
    raise AssertionError("not reached")


def seed_ring(seed):
    """One ring in seed policy: each walk ends where the reference does, and no error comes out."""
    maker = Maker(seed)
    idx = maker.available(0)
    memory = maker.memory
    device = QueueConfig(maker.layout, indirect=True).device(GuestMemory(memory.buffers), strict=False)
    if idx > maker.size:
        with pytest.raises(errors.InvalidAvailRingIndex):
            device.pop()
        return "InvalidAvailRingIndex"
    chains = list(device)
    assert len(chains) == idx
    outcome = "end"
    for i, chain in enumerate(chains):
        head = struct.unpack("<H", memory.read(maker.layout.avail_ring + 4 + 2 * (i % maker.size), 2))[0]
        found, broken = judge(memory, maker.size, maker.layout.desc_table, head, strict=False, indirect=True)
        assert chain.head_index == head
        assert fields(chain) == found, f"seed {seed}"
        outcome = next(iter(broken), outcome)
    assert device.broken is None
    return outcome


def used_ring(seed):  # noqa: C901, PLR0912 - likewise
    """A used ring, nearly right, for the driver half."""
    pick = random.Random(seed)
    size = pick.choice([1, 2, 4, 8, 16])
    layout = SplitLayout.at(RINGS, size)
    memory = Bytes()
    driver = QueueConfig(layout).driver(GuestMemory(memory.buffers))
    flying = {}
    while driver.num_free and pick.random() < 0.9:
        count = pick.randint(1, min(3, driver.num_free))
        writable = [(0x1_2000, pick.randint(1, 50))] * pick.randint(0, count)
        token = driver.add([(0x1_2000, 9)] * (count - len(writable)), writable)
        flying[token] = sum(length for _, length in writable)
    order = pick.sample(sorted(flying), pick.randint(0, len(flying)))
    returned = [(token, pick.randint(0, flying[token])) for token in order]
    wildness = pick.choice([0, 0.1, 0.3])
    for i, (token, written) in enumerate(returned):
        if pick.random() < wildness:
            token = pick.choice([size, 0xFFFF_FFFF, pick.randrange(size), pick.getrandbits(32)])  # noqa: PLW2901
        if pick.random() < wildness:
            written = pick.choice([written + 1, 200, 0xFFFF_FFFF])  # noqa: PLW2901
        returned[i] = (token, written)
        memory.write(layout.used_ring + 4 + 8 * i, struct.pack("<II", token, written))
    idx = len(returned)
    if pick.random() < wildness:
        idx = pick.choice([len(flying) + 1, 0xFFFF, pick.getrandbits(16)])
    memory.write(layout.used_ring, struct.pack("<HH", pick.getrandbits(16), idx))
    returned += [(0, 0)] * max(0, len(flying) - len(returned))  # what zeroed slots say
    for i in range(size + 1):
        if i == 0 and idx > len(flying):
            broken = "InvalidUsedRingIndex"
        elif i == idx:
            assert driver.reap() is None
            return "end"
        else:
            token, written = returned[i]
            broken = None
            if token >= size:
                broken = "InvalidUsedId"
            elif token not in flying:
                broken = "UsedIdNotInFlight"
            elif written > flying[token]:
                broken = "InvalidUsedLength"
        if broken:
            before = (driver.in_flight, driver.num_free)
            with pytest.raises(errors.PeerViolation) as caught:
                driver.reap()
            assert type(caught.value).__name__ == broken, f"seed {seed}: {caught.value}"
            assert (driver.in_flight, driver.num_free) == before
            assert sorted(driver.detach_unused()) == sorted(flying)
            return broken
        assert driver.reap() == (token, written), f"seed {seed}"
        del flying[token]
    raise AssertionError("not reached")


EVERY_STRICT = {
    *("end", "InvalidAvailRingIndex", "InvalidDescriptorIndex", "InvalidChain", "DescriptorLoop", "GuestMemory"),
    *("InvalidIndirectDescriptor", "InvalidIndirectDescriptorTable", "AddressOverflow", "ChainTooLong"),
}
EVERY_USED = {"end", "InvalidUsedRingIndex", "InvalidUsedId", "UsedIdNotInFlight", "InvalidUsedLength"}


@pytest.mark.fault("A32")
def test_the_device_judges_random_rings_as_the_reference_does():
    outcomes = {strict_ring(seed) for seed in range(3000)}
    assert outcomes == EVERY_STRICT  # or these rings would prove little


@pytest.mark.fault("A32")
def test_a_walk_in_seed_policy_ends_where_the_reference_does():
    outcomes = {seed_ring(seed) for seed in range(2000)}
    assert outcomes >= {"end", "DescriptorLoop", "InvalidDescriptorIndex", "InvalidIndirectDescriptor", "GuestMemory"}


@pytest.mark.fault("A32")
def test_the_driver_judges_random_used_rings_as_the_reference_does():
    assert {used_ring(seed) for seed in range(3000)} == EVERY_USED


@pytest.mark.long
@pytest.mark.fault("A32")
@pytest.mark.parametrize("part", range(4))
def test_many_more_random_rings(part):
    for seed in range(10_000 + part * 5_000, 15_000 + part * 5_000):
        strict_ring(seed)
        used_ring(seed)
        if seed % 4 == 0:
            seed_ring(seed)


# -- every small table -------------------------------------------------------------------------------------------------

END = max(start + size for start, size in REGIONS)
KINDS = [
    struct.pack("<QIHH", addr, length, flags, following)
    for addr in (0x1_2000, RINGS, END - 8, TOP - 7)  # RINGS: the table itself, as the indirect one
    for length in (0, 16, 32, 0xFFFF_FFFF)
    for flags in range(8)  # all of NEXT, WRITE, INDIRECT
    for following in (0, 1, 2)
]


def every_table(size, strict):
    """Each table of `size` entries, all of these kinds, walked and judged; what the walks came to."""
    memory = Bytes()
    guest = GuestMemory(memory.buffers)
    table = guest.window(RINGS, 16 * size, 8)
    walk = new_walk(guest, strict, True)
    outcomes = set()
    for entries in itertools.product(KINDS, repeat=size):
        memory.write(RINGS, b"".join(entries))
        expected, broken = judge(memory, size, RINGS, 0, strict=strict, indirect=True)
        found, raised = [], ""
        walk.start(table, size, 0)
        try:
            while walk.step():
                found.append((walk.addr, walk.len, walk.flags, walk.next))
        except errors.RuleError as error:
            raised = type(error).__name__
        assert found == expected, entries
        # In seed policy a walk just ends; by which name is nobody's business.
        assert raised in (broken or {""}) if strict else broken or not raised, (entries, raised, broken)
        outcomes.add(raised)
    return outcomes


@pytest.mark.fault("H02", "A03", "A05", "A06")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.long)])
def test_every_small_table_is_walked_to_an_end_and_judged_as_the_reference_does(size, strict):
    """Nothing is sampled: all flags, links within and beyond, buffers that exist, end too late, or wrap; and itself."""
    outcomes = every_table(size, strict)
    assert outcomes >= {"", "GuestMemory"}
    assert outcomes >= {"InvalidIndirectDescriptor", "AddressOverflow"} or not strict
    assert outcomes >= {"DescriptorLoop", "InvalidIndirectDescriptorTable", "InvalidChain"} or size == 1 or not strict


def test_a_walk_in_strict_policy_raises_where_it_is_iterated_over():
    memory = Bytes()
    memory.write(RINGS, struct.pack("<QIHH", 0x1_2000, 4, NEXT, 2))
    guest = GuestMemory(memory.buffers)
    for strict in (True, False):
        walk = new_walk(guest, strict, True)
        walk.start(guest.window(RINGS, 16 * 2, 8), 2, 0)
        assert next(walk).addr == 0x1_2000
        with pytest.raises(errors.InvalidDescriptorIndex if strict else StopIteration):
            next(walk)
