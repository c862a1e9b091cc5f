"""Chains that follow the rules: what the device sees of them, direct and indirect, in both policies [2.7.4, 2.7.5]."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout

NEXT, WRITE, INDIRECT = 1, 2, 4
POLICIES = pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])


def fields(descriptors):
    return [(d.addr, d.len, d.flags, d.next) for d in descriptors]


def poke_chain(r, indices, buffers, writable, table=None, tail=0):
    """Descriptors at `indices`, for (addr, len) buffers of which the last `writable` are device-writable."""
    expected = []
    for i, (index, (addr, length)) in enumerate(zip(indices, buffers, strict=True)):
        last = i + 1 == len(indices)
        flags = (0 if last and not tail else NEXT) | (WRITE if i >= len(buffers) - writable else 0)
        following = indices[i + 1] if not last else tail
        r.poke_desc(index, addr, length, flags, following, table=table)
        expected.append((addr, length, flags, following))
    return expected


@st.composite
def placements(draw, size=16):
    """Indices for the main table, in any order, and the number of buffers that are device-writable."""
    count = draw(st.integers(1, size))
    return draw(st.permutations(range(size)))[:count], draw(st.integers(0, count))


@given(placements(), st.lists(st.integers(0, 64), min_size=16, max_size=16), st.booleans())
def test_a_direct_chain_is_walked_in_its_order(rig, placed, lengths, strict):
    indices, writable = placed
    r = rig(16, strict=strict)
    buffers = [(r.buffers + 100 * i + i, lengths[i]) for i in range(len(indices))]
    expected = poke_chain(r, indices, buffers, writable)
    r.offer(indices[0])
    chain = r.device.pop()
    assert chain.head_index == indices[0]
    assert fields(chain) == expected
    assert fields(chain) == expected  # it can be iterated again
    assert fields(chain.readable()) == expected[: len(indices) - writable]
    assert fields(chain.writable()) == expected[len(indices) - writable :]
    assert chain.writable_bytes == (sum(d[1] for d in expected if d[2] & WRITE) if strict else 0)
    assert chain.readable_bytes == (sum(d[1] for d in expected if not d[2] & WRITE) if strict else 0)
    assert r.device.pop() is None


@pytest.mark.fault("A10")
@given(placements(8), st.integers(0, 7), st.integers(0, 3), st.sampled_from([0, WRITE]), st.booleans(), st.data())
def test_an_indirect_table_stands_for_its_descriptors(rig, placed, direct, spare, ignored, strict, data):
    """A10: zero or more direct descriptors, then one that refers to a table anywhere; its WRITE flag is ignored."""
    indices, writable = placed
    r = rig(16, strict=strict)
    buffers = [(r.buffers + 100 * i, 10 + i) for i in range(direct + len(indices))]
    main = list(range(8, 8 + direct + 1))
    expected = poke_chain(r, main[:-1], buffers[:direct], 0, tail=main[-1])
    table = r.tables + data.draw(st.integers(0, 15))
    r.poke_desc(main[-1], table, 16 * (max(indices) + 1 + spare), INDIRECT | ignored, 0xAAAA)
    order = [0, *(i for i in indices if i)] if 0 in indices else [0, *indices[1:]]
    expected += poke_chain(r, order, buffers[direct:], writable, table=table)
    r.offer(main[0])
    assert fields(r.device.pop()) == expected


@POLICIES
def test_a_chain_may_be_as_long_as_the_queue(rig, strict):
    for size in (1, 2, 8, 64):
        r = rig(size, strict=strict)
        expected = poke_chain(r, list(range(size)), [(r.buffers, 1)] * size, 0)
        r.offer(0)
        assert fields(r.device.pop()) == expected


@pytest.mark.fault("A12")
@POLICIES
def test_a_zero_length_descriptor_is_an_empty_buffer(rig, strict):
    """A12: wherever it points; also if the whole chain is empty."""
    r = rig(strict=strict)
    r.poke_desc(0, 0, 0, NEXT, 1)
    r.poke_desc(1, r.buffers, 4, NEXT, 2)
    r.poke_desc(2, 2**64 - 1, 0, NEXT | WRITE, 3)
    r.poke_desc(3, r.end, 0, WRITE, 0)
    r.poke_desc(4, 0x77, 0, 0, 0)
    r.poke(r.buffers, b"data")
    r.offer(0, 4)
    chain = r.device.pop()
    assert len(list(chain)) == 4
    assert chain.reader().read() == b"data"
    assert chain.writer().write(b"x") == 0
    empty = r.device.pop()
    assert fields(empty) == [(0x77, 0, 0, 0)]
    assert empty.reader().available_bytes == 0
    r.device.add_used(4, 0)
    r.device.add_used(0, 0)
    assert r.used == 2


@pytest.mark.fault("A28")
@POLICIES
@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_reserved_flag_bits_are_ignored(rig, strict, first, second):
    """A28: whatever the driver sets beside NEXT, WRITE and INDIRECT."""
    r = rig(strict=strict)
    flags = ((first & ~7) | NEXT, (second & ~7) | WRITE)
    r.poke_desc(5, r.buffers, 8, flags[0], 2)
    r.poke_desc(2, r.buffers + 8, 8, flags[1], second)
    r.offer(5)
    chain = r.device.pop()
    assert fields(chain) == [(r.buffers, 8, flags[0], 2), (r.buffers + 8, 8, flags[1], second)]
    assert r.device.broken is None
    assert (len(list(chain.readable())), len(list(chain.writable()))) == (1, 1)


@pytest.mark.parametrize("table", [False, True], ids=["direct", "indirect"])
def test_a_chain_in_strict_policy_is_a_private_copy(rig, table):
    r = rig()
    at = r.tables if table else None
    if table:
        r.poke_desc(7, r.tables, 32, INDIRECT)
    expected = poke_chain(r, [0, 1], [(r.buffers, 8), (r.buffers + 8, 8)], 1, table=at)
    r.offer(7 if table else 0)
    chain = r.device.pop()
    for index in (0, 1):
        r.poke_desc(index, 2**64 - 1, 0xFFFF_FFFF, 0xFFFF, 0xFFFF, table=at)
    assert fields(chain) == expected
    chain.writer().write_all(b"answered")
    assert r.peek(r.buffers + 8, 8) == b"answered"
    with pytest.raises(TypeError):
        chain.walk()


def test_a_chain_in_seed_policy_is_read_when_it_is_walked(rig):
    r = rig(strict=False)
    poke_chain(r, [0, 1], [(r.buffers, 8), (r.buffers + 8, 8)], 0)
    r.offer(0)
    chain = r.device.pop()
    walk = chain.walk()
    assert next(walk).len == 8
    twin = walk.copy()
    r.poke_desc(1, r.buffers, 5)
    assert fields(walk) == fields(twin) == [(r.buffers, 5, 0, 0)]
    assert next(walk, None) is None
    assert [d.len for d in chain] == [8, 5]


@POLICIES
def test_a_buffer_may_cross_from_one_region_into_the_next(rig, strict):
    layout = SplitLayout.at(0x1000, 8)
    rings, first, second = bytearray(0x1000), bytearray(8), bytearray(8)
    memory = GuestMemory([(0x1000, rings), (0x4000, first), (0x4008, second)])
    driver = QueueConfig(layout).driver(memory)
    device = QueueConfig(layout).device(memory, strict=strict)
    driver.add([(0x4006, 4)], [(0x4007, 2), (0x4000, 16)])
    memory.write(0x4006, b"abcd")
    chain = device.pop()
    assert [view.nbytes for view in chain.reader().views()] == [2, 2]
    assert chain.reader().read() == b"abcd"
    chain.writer().write_all(b"12")
    assert memory.read(0x4006, 4) == b"a12d"


def test_a_chain_knows_its_queue_and_its_memory(rig):
    r = rig()
    r.driver.add([(r.buffers, 4)])
    chain = r.device.pop()
    assert chain.queue is r.device
    assert chain.memory is r.memory
    assert repr(chain) == f"DescriptorChain(head=0, [Descriptor(addr={r.buffers:#x}, len=4, flags=0)])"
