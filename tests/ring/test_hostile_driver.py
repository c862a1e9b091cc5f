"""A driver that breaks the rules: the device names the rule, stops that queue, and nothing else happens (A01 to A30).

Each fault is written into the rings by hand. In strict policy the chain is refused as a whole; in seed policy its walk
ends, as that of `virtio-queue` does, in front of what is wrong.
"""

from __future__ import annotations

import gc
import mmap
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import core, errors
from vqshm.memory import GuestMemory, Region
from vqshm.ring import QueueConfig, SplitLayout

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 8


# -- malformed chains --------------------------------------------------------------------------------------------------
# Each entry: the error, how many descriptors seed policy yields, and a function that writes the chain, its head at 0.

FAULTS = {}


def fault(name, error, prefix):
    """Register a fault under its row of the list."""

    def register(write):
        FAULTS[name] = (error, prefix, write)
        return write

    return register


def next_out_of_range(following):
    def write(r):
        r.poke_desc(0, r.buffers, 8, NEXT, 1)
        r.poke_desc(1, r.buffers, 8, NEXT, following)

    return write


for value in (SIZE, SIZE + 1, 0x7FFF, 0x8000, 0xFFFF):
    fault(f"A02 next {value}", errors.InvalidDescriptorIndex, 2)(next_out_of_range(value))


def cycle(length, table=None):
    def write(r):
        at = None
        if table is not None:
            r.poke_desc(0, r.tables, 16 * table, INDIRECT)
            at = r.tables
        for i in range(length):
            r.poke_desc(i, r.buffers, 1, NEXT, (i + 1) % length, table=at)

    return write


for length in (1, 2, 3, SIZE):
    fault(f"A03 a cycle of {length}", errors.DescriptorLoop, SIZE)(cycle(length))
for entries, length in ((1, 1), (3, 2), (8, 8)):
    fault(f"A04 a cycle of {length} in a table of {entries}", errors.DescriptorLoop, entries)(cycle(length, entries))


@fault("A03 into the middle of the chain", errors.DescriptorLoop, SIZE)
def _(r):
    for i, following in enumerate((1, 2, 3, 1)):
        r.poke_desc(i, r.buffers, 0, NEXT, following)


@fault("A04 more descriptors in all than the queue has", errors.DescriptorLoop, 2 + SIZE)
def _(r):
    r.poke_desc(0, r.buffers, 1, NEXT, 1)
    r.poke_desc(1, r.buffers, 1, NEXT, 2)
    r.poke_desc(2, r.tables, 16 * SIZE, INDIRECT)
    for i in range(SIZE):
        r.poke_desc(i, r.buffers, 1, NEXT if i + 1 < SIZE else 0, i + 1, table=r.tables)


@fault("A05 nested", errors.InvalidIndirectDescriptor, 1)
def _(r):
    r.poke_desc(0, r.tables, 32, INDIRECT)
    r.poke_desc(0, r.buffers, 1, NEXT, 1, table=r.tables)
    r.poke_desc(1, r.tables + 64, 16, INDIRECT, table=r.tables)
    r.poke_desc(0, r.buffers, 1, table=r.tables + 64)


@fault("A05 a table that refers to itself", errors.InvalidIndirectDescriptor, 0)
def _(r):
    r.poke_desc(0, r.tables, 16, INDIRECT)
    r.poke_desc(0, r.tables, 16, INDIRECT, table=r.tables)


def table_length(count, before=0):
    def write(r):
        for i in range(before):
            r.poke_desc(i, r.buffers, 1, NEXT, i + 1)
        r.poke_desc(before, r.tables, count, INDIRECT)
        r.poke_desc(0, r.buffers, 1, table=r.tables)

    return write


for count in (0, 1, 15, 17, 33, 65536 * 16, 0xFFFF_FFF0, 0xFFFF_FFFF):
    fault(f"A06 a table of {count} bytes", errors.InvalidIndirectDescriptorTable, 0)(table_length(count))
fault("A06 behind direct descriptors", errors.InvalidIndirectDescriptorTable, 3)(table_length(20, before=3))


@fault("A06 next out of the table", errors.InvalidDescriptorIndex, 1)
def _(r):
    r.poke_desc(0, r.tables, 48, INDIRECT)
    r.poke_desc(0, r.buffers, 1, NEXT, 3, table=r.tables)
    r.poke_desc(3, r.buffers, 1, table=r.tables)


@fault("A08 INDIRECT and NEXT", errors.InvalidIndirectDescriptor, 1)
def _(r):
    r.poke_desc(0, r.tables, 16, INDIRECT | NEXT, 1)
    r.poke_desc(1, r.buffers, 1)
    r.poke_desc(0, r.buffers, 1, table=r.tables)


def readable_behind_writable(direct):
    def write(r):
        r.poke_desc(0, r.buffers, 1, NEXT | WRITE, 1)
        if direct:
            r.poke_desc(1, r.buffers, 1)
        else:
            r.poke_desc(1, r.tables, 16, INDIRECT)
            r.poke_desc(0, r.buffers, 1, table=r.tables)

    return write


fault("A11 readable behind writable", errors.InvalidChain, 2)(readable_behind_writable(direct=True))
fault("A11 readable behind writable in a table", errors.InvalidChain, 2)(readable_behind_writable(direct=False))


def buffer_at(addr, length, flags=0):
    def write(r):
        place = addr(r) if callable(addr) else addr
        r.poke_desc(0, r.buffers, 4, NEXT | flags, 1)
        r.poke_desc(1, place, length, flags)

    return write


for addr, length in ((2**64 - 1, 1), (2**64 - 1, 2), (2**64 - 8, 9), (2**64 - 0x1000, 0xF000_0000), (2**64 - 16, 16)):
    fault(f"A13 {length} bytes at {addr:#x}", errors.AddressOverflow, 2)(buffer_at(addr, length))
for flags in (0, WRITE):
    kind = "writable" if flags else "readable"
    gone = errors.GuestMemory
    fault(f"A14 {kind}, ends one byte behind memory", gone, 2)(buffer_at(lambda r: r.end - 8, 9, flags))
    fault(f"A14 {kind}, starts behind memory", gone, 2)(buffer_at(lambda r: r.end, 1, flags))
    fault(f"A14 {kind}, starts before memory", gone, 2)(buffer_at(lambda r: 0xFFFF, 8, flags))
    fault(f"A14 {kind}, 4 GiB", gone, 2)(buffer_at(lambda r: r.buffers, 0xFFFF_FFF0, flags))


def table_at(addr):
    def write(r):
        r.poke_desc(0, addr(r), 64, INDIRECT)

    return write


fault("A14 a table that ends behind memory", errors.GuestMemory, None)(table_at(lambda r: r.end - 32))
fault("A14 a table that does not exist", errors.GuestMemory, 0)(table_at(lambda r: 0))
fault("A13 a table that wraps", errors.AddressOverflow, 0)(table_at(lambda r: 2**64 - 16))


@fault("A16 more than 2^32-1 bytes in all", errors.ChainTooLong, 1)
def _(r):
    r.poke_desc(0, r.buffers, 1, NEXT, 1)
    r.poke_desc(1, r.buffers, 0xFFFF_FFFF, WRITE)


EACH = [pytest.param(name, marks=pytest.mark.fault(name.split()[0])) for name in FAULTS]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_malformed_chain_is_refused_by_name_and_stops_the_queue(rig, assert_stopped, name, event_idx):
    error, _, write = FAULTS[name]
    r = rig(SIZE, name="rx", event_idx=event_idx)
    write(r)
    r.offer(0)
    before = bytes(r.bytes)
    with pytest.raises(error) as caught:
        r.device.pop()
    assert type(caught.value).__name__ == error.__name__
    assert caught.value.facts["head"] == 0
    assert_stopped(r.device, caught.value)
    assert r.bytes == before  # nothing was written: not into the buffers, and the chain was not returned


@pytest.mark.parametrize("name", EACH)
def test_a_malformed_chain_stops_an_iteration_and_a_split_pop_too(rig, assert_stopped, name):
    error, _, write = FAULTS[name]
    for take in (lambda device: next(iter(device)), lambda device: device.chain(device.pop_head())):
        r = rig(SIZE)
        write(r)
        r.offer(0)
        with pytest.raises(error) as caught:
            take(r.device)
        assert_stopped(r.device, caught.value)


@pytest.mark.parametrize("name", EACH)
def test_a_malformed_chain_just_ends_in_seed_policy(rig, name):
    _, prefix, write = FAULTS[name]
    r = rig(SIZE, strict=False)
    write(r)
    r.offer(0)
    before = bytes(r.bytes)
    chain = r.device.pop()
    descriptors = list(chain)
    assert len(descriptors) == (prefix if prefix is not None else len(descriptors))
    assert len(descriptors) <= SIZE + 2
    assert r.device.broken is None
    assert r.bytes == before
    r.device.add_used(0, 0)
    r.poke_desc(5, r.buffers, 4)
    r.offer(5)
    assert [d.len for d in r.device.pop()] == [4]


@pytest.mark.parametrize("name", EACH)
def test_one_malformed_chain_leaves_the_other_queues_alone(rig, name):
    error, _, write = FAULTS[name]
    r = rig(SIZE)
    other_layout = SplitLayout.at(r.buffers + 0x8000, SIZE)
    other = QueueConfig(other_layout, indirect=True, name="other")
    driver, device = other.driver(r.memory), other.device(r.memory)
    driver.add([(r.buffers, 4)])
    write(r)
    r.offer(0)
    with pytest.raises(error):
        r.device.pop()
    chain = device.pop()
    device.add_used(chain.head_index, 0)
    assert device.broken is None
    assert driver.reap() == (0, 0)
    driver.add([(r.buffers, 4)])
    assert len(list(device)) == 1


def test_an_indirect_table_is_refused_where_it_was_not_negotiated(rig, assert_stopped):
    r = rig(indirect=False)
    r.poke_desc(0, r.tables, 16, INDIRECT)
    r.poke_desc(0, r.buffers, 8, table=r.tables)
    r.offer(0)
    with pytest.raises(errors.InvalidIndirectDescriptor, match="not negotiated") as caught:
        r.device.pop()
    assert_stopped(r.device, caught.value)


class Counting:
    """Memory that serves every word on the slow road and counts."""

    def __init__(self, memory, address):
        self.memory, self.address, self.reads = memory, address, 0

    def load(self, offset, width):
        self.reads += 1
        return int.from_bytes(self.memory.read(self.address + offset, width), "little")

    get = load

    def store(self, offset, width, value):
        self.memory.write(self.address + offset, value.to_bytes(width, "little"))

    put = store


class CountedMemory(GuestMemory):
    """Guest memory whose windows count their reads."""

    def __init__(self, regions):
        super().__init__(regions)
        self.counters = []

    def window(self, address, count, alignment):
        self.counters.append(Counting(self, address))
        return Region(bytearray(), 0, 0, self.counters[-1])

    @property
    def reads(self):
        return sum(counter.reads for counter in self.counters)


@pytest.mark.fault("A03", "A04")
@pytest.mark.parametrize("size", [1, 8, 256, 4096])
@pytest.mark.parametrize("table", [False, True], ids=["direct", "indirect"])
def test_a_loop_is_found_after_at_most_a_queue_size_of_steps(rig, size, table):
    """A03, A04: two words for a descriptor, one more for the descriptor that refers to the table, idx and head."""
    r = rig(size, memory=CountedMemory)
    if table:
        r.poke_desc(0, r.tables, 16 * size, INDIRECT)
        r.poke_desc(0, r.buffers, 1, NEXT, 0, table=r.tables)
    else:
        r.poke_desc(0, r.buffers, 1, NEXT, 0)
    r.offer(0)
    device = r.device
    with pytest.raises(errors.DescriptorLoop):
        device.pop()
    assert 2 * size <= r.memory.reads <= 2 * (size + 1) + 2


@pytest.mark.fault("A25")
def test_a_broken_queue_is_not_even_looked_at(rig):
    """A25: kicks may go on, the chain may stay at the head; it costs the device one comparison."""
    r = rig(memory=CountedMemory)
    r.poke_desc(0, r.buffers, 1, NEXT, 99)
    r.offer(0)
    with pytest.raises(errors.InvalidDescriptorIndex):
        r.device.pop()
    before = r.memory.reads
    assert before
    for _ in range(100):
        r.offer(0)
        for call in (r.device.pop, r.device.pop_head, r.device.available, lambda: list(r.device)):
            with pytest.raises(errors.QueueBroken):
                call()
    assert r.memory.reads == before


# -- the available ring ------------------------------------------------------------------------------------------------


@pytest.mark.fault("A01")
@pytest.mark.parametrize("head", [SIZE, SIZE + 1, 0x7FFF, 0x8000, 0xFFFF])
def test_a_head_out_of_range_is_refused(rig, assert_stopped, head):
    """A01"""
    r = rig(SIZE, name="tx")
    r.poke_desc(0, r.buffers, 4)
    r.offer(0, head, 0)
    r.device.pop()
    with pytest.raises(errors.InvalidDescriptorIndex, match=f"tx: .* holds head {head} of 8") as caught:
        r.device.pop()
    assert caught.value.facts == {"index": head, "limit": SIZE, "queue": "tx"}
    assert r.device.next_avail == 1
    assert_stopped(r.device, caught.value)
    seed = rig(SIZE, strict=False)
    seed.offer(head)
    chain = seed.device.pop()
    assert chain.head_index == head
    assert list(chain) == []


def test_a_head_in_flight_cannot_be_offered_again(rig, assert_stopped):
    r = rig()
    r.poke_desc(3, r.buffers, 4)
    r.offer(3, 3)
    r.device.pop()
    with pytest.raises(errors.InvalidChain, match="offered again while in flight") as caught:
        r.device.pop()
    assert_stopped(r.device, caught.value)


@pytest.mark.fault("A17")
@pytest.mark.parametrize("size", [1, 2, 8, 256, 32768])
@pytest.mark.parametrize("start", [0, 65530, 65535])
def test_an_idx_further_ahead_than_the_queue_is_refused(rig, assert_stopped, size, start):
    """A17: also one that moved back, by however much."""
    for ahead in sorted({size + 1, size + 2, 32768 + size, 65534, 65535} - {65536}):
        r = rig(size, start=start)
        r.poke_idx(avail=start + ahead)
        with pytest.raises(errors.InvalidAvailRingIndex) as caught:
            r.device.pop()
        assert caught.value.facts == {"index": (start + ahead) & 0xFFFF, "limit": size, "queue": "queue"}
        assert r.device.next_avail == start
        assert_stopped(r.device, caught.value)


@pytest.mark.fault("A17")
def test_an_idx_that_moves_back_is_found_when_it_is_looked_at_next(rig, assert_stopped):
    """A17: what was promised before has been taken by then; nothing is taken twice."""
    r = rig()
    for i in range(3):
        r.poke_desc(i, r.buffers, 4)
    r.offer(0, 1, 2)
    assert [r.device.pop().head_index for _ in range(2)] == [0, 1]
    r.poke_idx(avail=1)
    assert r.device.pop().head_index == 2
    with pytest.raises(errors.InvalidAvailRingIndex) as caught:
        r.device.pop()
    assert_stopped(r.device, caught.value)


@pytest.mark.fault("A18")
@pytest.mark.parametrize("size", [1, 2, 8, 1024, 32768])
@pytest.mark.parametrize("back", [0, 1, 5])
def test_an_idx_a_whole_queue_ahead_is_accepted_also_across_the_wrap(rig, size, back):
    """A18"""
    start = 65536 - min(back, size) & 0xFFFF
    r = rig(size, start=start)
    for i in range(size):
        r.poke_desc(i, r.buffers, 4)
        r.poke_avail_slot(start + i, i)
    r.poke_idx(avail=start + size)
    device = r.device
    assert device.available() == size
    assert [device.pop_head() for _ in range(size + 1)] == [*range(size), -1]


@pytest.mark.fault("A25")
@pytest.mark.parametrize("name", ["A17", "A01"])
def test_a_violation_is_raised_once(rig, name):
    """A25: what comes afterwards is QueueBroken, which is local and refers to it."""
    r = rig()
    if name == "A17":
        r.poke_idx(avail=100)
    else:
        r.offer(99)
    seen = []
    for _ in range(50):
        with pytest.raises(errors.VqshmError) as caught:
            r.device.pop()
        seen.append(isinstance(caught.value, errors.PeerViolation))
    assert seen == [True] + 49 * [False]


def test_the_memory_of_a_broken_queue_can_be_unmapped():
    """The error it keeps holds the frames that hold the queue; that circle must not hold the memory for ever."""
    memory = mmap.mmap(-1, 0x1_0000)

    def use():
        layout = SplitLayout.at(0x1_0000, SIZE)
        guest = GuestMemory([(0x1_0000, memory)])
        guest.write(layout.avail_ring + 2, b"\x63")
        device = QueueConfig(layout).device(guest)
        with pytest.raises(errors.InvalidAvailRingIndex):
            device.pop()

    use()
    gc.collect()
    memory.close()
    assert memory.closed


def test_the_rest_of_an_iteration_is_refused_after_a_violation(rig):
    r = rig()
    r.poke_desc(0, r.buffers, 4)
    r.offer(0, 99, 0)
    iterator = iter(r.device)
    next(iterator)
    with pytest.raises(errors.InvalidDescriptorIndex):
        next(iterator)
    for call in (iterator.next_head, lambda: next(iterator)):
        with pytest.raises(errors.QueueBroken):
            call()


@pytest.mark.fault("A26")
def test_the_device_holds_no_more_chains_than_the_queue_has(rig):
    """A26: a driver that posts without end, and never reaps, is stopped when all heads are in flight."""
    r = rig()
    device = r.device
    for i in range(SIZE):
        r.poke_desc(i, r.buffers, 4)
    for i in range(SIZE):
        r.offer(i)
        assert device.pop() is not None
    for head in range(SIZE):
        r.offer(head)
    with pytest.raises(errors.InvalidChain):
        device.pop()
    assert device.next_avail == SIZE


@pytest.mark.fault("A26")
def test_a_driver_that_posts_and_never_reaps_costs_the_device_no_memory(rig):
    r = rig()
    device = r.device
    r.poke_desc(0, r.buffers, 4)

    def lap(count):
        for _ in range(count):
            r.offer(0)
            device.add_used(device.pop().head_index, 0)

    lap(100)
    tracemalloc.start()
    try:
        lap(100)
        before = tracemalloc.get_traced_memory()[0]
        lap(200_000 if core.kind() == "compiled" else 20_000)
        assert tracemalloc.get_traced_memory()[0] - before < 4096
    finally:
        tracemalloc.stop()


@pytest.mark.fault("A16")
@pytest.mark.parametrize("beyond", [0, 1])
def test_a_chain_of_small_buffers_has_at_most_2_to_the_32_minus_1_bytes(rig, beyond):
    """The same buffer, named 2^15 times: each length is harmless, the sum is not."""
    r = rig(32768, indirect=False)
    count, length = 32768, 1 << 17
    memory = GuestMemory([(0x1_0000, r.bytes), (1 << 32, mmap.mmap(-1, length))])
    device = r.config.device(memory)
    for i in range(count):
        last = i + 1 == count
        r.poke_desc(i, 1 << 32, length if not last else length - 1 + beyond, WRITE | (0 if last else NEXT), i + 1)
    r.offer(0)
    if beyond:
        with pytest.raises(errors.ChainTooLong):
            device.pop()
        assert device.broken is not None
    else:
        chain = device.pop()
        assert chain.writable_bytes == 0xFFFF_FFFF
        device.add_used(0, 0xFFFF_FFFF)
        assert r.peek(r.layout.used_ring + 4, 8) == struct.pack("<II", 0, 0xFFFF_FFFF)


@pytest.mark.fault("A28")
@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.booleans(), st.integers(0, 4))
def test_garbage_in_avail_flags_and_used_event_costs_the_liar_only(rig, flags, event, event_idx, count):
    """A28: the answer is yes or no, and never an error."""
    r = rig(event_idx=event_idx)
    r.poke_flags(avail=flags)
    r.poke_event(used_event=event)
    for i in range(count):
        r.poke_desc(i, r.buffers, 4)
    r.offer(*range(count))
    for i in range(count):
        r.device.add_used(r.device.pop().head_index, 0)
        assert r.device.used_idx() == i + 1
    wanted = event < count if event_idx else count > 0 and not flags & 1
    assert r.device.needs_notification() is wanted
    assert r.device.broken is None


@pytest.mark.fault("A30")
@pytest.mark.parametrize("written", [9, 10, 0xFFFF_FFFF, 2**32, 2**63 - 1, -1, -(2**40)])
def test_more_bytes_than_the_chain_holds_cannot_be_reported(rig, written):
    """A30: a local error; the chain is still there to be returned with the right number."""
    r = rig()
    r.poke_desc(0, r.buffers, 100, NEXT, 1)
    r.poke_desc(1, r.buffers, 8, WRITE)
    r.offer(0)
    r.device.pop()
    before = bytes(r.bytes)
    with pytest.raises(errors.InvalidUsedLength) as caught:
        r.device.add_used(0, written)
    assert not isinstance(caught.value, errors.PeerViolation)
    assert r.device.broken is None
    assert r.bytes == before
    r.device.add_used(0, 8)
    assert r.used == 1


def test_violations_can_be_caught_by_rule_by_blame_and_by_built_in(rig):
    r = rig(name="q7")
    r.offer(9)
    with pytest.raises(errors.PeerViolation) as caught:
        r.device.pop()
    for kind in (errors.RuleError, errors.InvalidDescriptorIndex, ValueError, errors.VqshmError):
        assert isinstance(caught.value, kind)
    assert not isinstance(caught.value, errors.LocalError)
    assert "slot 0" in str(caught.value)
    assert struct.unpack("<H", r.peek(r.layout.avail_ring + 4, 2)) == (9,)
