"""Layout, framing, descriptors and indirect tables [2.7.1, 2.7.4, 2.7.5, 6.1]."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout

NEXT, WRITE, INDIRECT = 1, 2, 4
INDIRECTLY = pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
POLICIES = pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])


# -- 2.7.1 alignment ---------------------------------------------------------------------------------------------------


@pytest.mark.spec("2.7.1-driver-1")
@given(base=st.integers(0, 1 << 40), order=st.integers(0, 15))
def test_the_areas_are_laid_out_on_their_alignments(base, order):
    layout = SplitLayout.at(base, 1 << order)
    assert layout.desc_table % 16 == layout.avail_ring % 2 == layout.used_ring % 4 == 0


@pytest.mark.spec("2.7.1-driver-1")
@pytest.mark.parametrize(
    ("moved", "by", "error"),
    [
        ("desc_table", 8, errors.InvalidDescTableAlign),
        ("avail_ring", 1, errors.InvalidAvailRingAlign),
        ("used_ring", 2, errors.InvalidUsedRingAlign),
    ],
)
def test_a_driver_does_not_run_on_areas_off_their_alignments(bench, moved, by, error):
    rig = bench()
    layout = rig.layout._replace(**{moved: getattr(rig.layout, moved) + by})
    with pytest.raises(error):
        QueueConfig(layout).driver(rig.memory)


# -- 2.7.4 framing -----------------------------------------------------------------------------------------------------


def cuts(total):
    """Ways to cut `total` bytes into up to five pieces."""
    return st.lists(st.integers(1, total - 1), max_size=4, unique=True).map(
        lambda inner: [b - a for a, b in zip([0, *sorted(inner)], [*sorted(inner), total], strict=True)]
    )


@pytest.mark.spec("2.7.4.1-device-1")
@given(
    readable=cuts(40),
    writable=cuts(24),
    order=st.permutations(range(16)),
    plain=st.integers(0, 10),
    table=st.booleans(),
    strict=st.booleans(),
)
def test_the_device_understands_a_request_however_it_is_cut(bench, readable, writable, order, plain, table, strict):
    rig = bench(16, indirect=True, strict=strict)
    request, answer = bytes(range(40)), bytes(range(100, 124))
    pieces, written_to, done = [], [], 0
    for count in readable:
        pieces.append((*rig.buffer(count, request[done : done + count]), 0))
        done += count
    for count in writable:
        written_to.append(rig.buffer(count))
        pieces.append((*written_to[-1], WRITE))
    put_chain(rig, pieces, order, plain if table else len(pieces))

    rig.offer(order[0])
    chain = rig.device.pop()
    assert chain.reader().read() == request
    writer = chain.writer()
    writer.write_all(answer)
    rig.device.add_used(chain.head_index, writer.bytes_written)

    assert b"".join(rig.peek(*buffer) for buffer in written_to) == answer
    assert rig.used().ring[0] == (order[0], len(answer))


def put_chain(rig, pieces, order, plain):
    """As a foreign driver: write (addr, len, flags), the first `plain` to the entries `order`, the rest to a table."""
    table, _ = rig.buffer(16 * len(pieces))
    plain = min(plain, len(pieces))
    for i, (addr, length, flags) in enumerate(pieces):
        more = i + 1 < len(pieces)
        if i < plain:
            rig.poke_desc(order[i], addr, length, flags | (NEXT if more else 0), order[i + 1])
        else:
            at = i - plain
            rig.poke_desc(at, addr, length, flags | (NEXT if more else 0), at + 1 if more else 0, table=table)
    if plain < len(pieces):
        rig.poke_desc(order[plain], table, 16 * (len(pieces) - plain), INDIRECT)


@pytest.mark.spec("2.7.4.2-driver-1")
@INDIRECTLY
@given(readable=st.integers(0, 4), writable=st.integers(0, 4))
def test_no_readable_descriptor_stands_behind_a_writable_one(bench, indirect, readable, writable):
    rig = bench(indirect=indirect)
    inbound = [rig.buffer(16) for _ in range(readable)]
    outbound = [rig.buffer(16) for _ in range(writable)]
    if not inbound and not outbound:
        return
    found = rig.buffers(rig.driver.add(inbound, outbound))
    assert [(d.addr, d.len) for d in found] == inbound + outbound
    assert [bool(d.flags & WRITE) for d in found] == [False] * readable + [True] * writable


# -- 2.7.5 the descriptor table ----------------------------------------------------------------------------------------


@pytest.mark.fault("A29")
@pytest.mark.spec("2.7.5.1-device-1")
@POLICIES
@INDIRECTLY
def test_the_device_writes_to_writable_buffers_only(bench, strict, indirect):
    rig = bench(indirect=indirect, strict=strict)
    # Each writable buffer has readable ones for neighbours, so that a write past its end would show.
    parts = [rig.buffer(16, b"r" * 16) for _ in range(5)]
    inbound, outbound = parts[0::2], parts[1::2]
    head = rig.driver.add(inbound, outbound)
    before = rig.snapshot(*outbound)

    writer = rig.device.pop().writer()
    with pytest.raises(errors.ShortBuffer):
        writer.write_all(b"w" * 100)
    rig.device.add_used(head, writer.bytes_written)

    assert rig.snapshot(*outbound, rig.used_area) == blanked(rig, before, rig.used_area)
    assert b"".join(rig.peek(*buffer) for buffer in outbound) == b"w" * 32


@pytest.mark.fault("A11")
@pytest.mark.spec("2.7.5.1-device-1")
@POLICIES
def test_the_device_does_not_write_to_readable_buffers_of_a_chain_in_wrong_order(bench, strict):
    rig = bench(strict=strict)
    readable, writable = rig.buffer(16, b"r" * 16), rig.buffer(16)
    rig.poke_desc(0, *writable, WRITE | NEXT, 1)
    rig.poke_desc(1, *readable)
    rig.offer(0)
    with contextlib.suppress(errors.InvalidChain):
        writer = rig.device.pop().writer()
        with contextlib.suppress(errors.ShortBuffer):
            writer.write_all(b"w" * 32)
    assert rig.peek(*readable) == b"r" * 16


@pytest.mark.fault("A29")
@pytest.mark.spec("2.7.5.1-device-1")
@POLICIES
def test_the_device_gets_readable_buffers_as_read_only_views(bench, strict):
    rig = bench(strict=strict)
    rig.driver.add([rig.buffer(16), rig.buffer(16)], [rig.buffer(16)])
    chain = rig.device.pop()
    assert all(view.readonly for view in chain.reader().views())
    assert not any(view.readonly for view in chain.writer().views())


@pytest.mark.spec("2.7.5.1-device-2")
@POLICIES
@INDIRECTLY
def test_the_device_writes_neither_to_tables_nor_to_the_available_ring(bench, strict, indirect):
    rig = bench(indirect=indirect, strict=strict)
    rig.driver.add([rig.buffer(8)], [rig.buffer(8)])
    rig.driver.add([], [rig.buffer(8)])
    rig.poke_desc(7, 0xDEAD_0000, 8, WRITE)  # a chain that breaks a rule
    rig.offer(7)
    before = rig.snapshot(rig.used_area)

    device = rig.device
    device.enable_notification()
    device.disable_notification()
    for _ in range(2):
        chain = device.pop()
        list(chain)
        chain.writer()
        device.add_used(chain.head_index, 0)
        device.needs_notification()
    with contextlib.suppress(errors.GuestMemory):
        bad = device.pop()
        bad.writer()

    assert rig.snapshot(rig.used_area) == before


def blanked(rig, snapshot, area):
    """A snapshot with one more area blanked."""
    copy = bytearray(snapshot)
    start = area[0] - rig.memory.regions[0].start
    copy[start : start + area[1]] = bytes(area[1])
    return bytes(copy)


BIG = 131_088  # bytes; 32768 of them are more than 2^32


@pytest.mark.spec("2.7.5.2-driver-1")
@pytest.mark.parametrize("inbound", [32768, 0, 16384], ids=["readable", "writable", "both"])
def test_no_chain_of_more_than_4_gib_is_offered(inbound):
    size = 32768
    layout = SplitLayout.at(0x1000, size)
    buffer = (0x1000, BIG)
    assert BIG * size > 1 << 32
    memory = GuestMemory([(0x1000, rings := bytearray(layout.end))])
    driver = QueueConfig(layout).driver(memory)
    before = bytes(rings)
    with pytest.raises(errors.ChainTooLong):
        driver.add([buffer] * inbound, [buffer] * (size - inbound))
    assert rings == before


@pytest.mark.spec("2.7.5.2-driver-1")
@INDIRECTLY
@given(plan=st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=40))
def test_no_chain_loops_or_shares_a_descriptor(bench, indirect, plan):
    rig = bench(16, indirect=indirect)
    buffer = rig.buffer(16)
    in_flight = []
    for count, give_back_first in plan:
        if give_back_first and in_flight:
            head = in_flight.pop(len(in_flight) // 2)
            rig.give_back(head)
            assert rig.driver.reap() == (head, 0)
        with contextlib.suppress(errors.QueueFull):
            in_flight.append(rig.driver.add([buffer] * count))
    entries = [index for head in in_flight for index in table_entries(rig, head)]
    assert len(entries) == len(set(entries))


def table_entries(rig, head):
    """The entries of the descriptor table that a chain occupies."""
    found = [head]
    while (last := rig.desc(found[-1])).flags & NEXT:
        found.append(last.next)
        assert len(found) <= rig.size
    return found


# -- 2.7.5.3 indirect tables -------------------------------------------------------------------------------------------


def offer_many(rig):
    """Chains of every length, offered and given back; yields all the descriptors of each."""
    for count in range(1, rig.size + 1):
        buffers = [rig.buffer(16) for _ in range(count)]
        head = rig.driver.add(buffers[: count // 2], buffers[count // 2 :])
        yield count, head, rig.chain(head)
        rig.give_back(head)
        rig.driver.reap()


@pytest.mark.spec("2.7.5.3.1-driver-1")
def test_indirect_is_never_set_unless_negotiated(bench):
    rig = bench(indirect=False)
    for count, _, chain in offer_many(rig):
        assert len(chain) == count
        assert not any(d.flags & INDIRECT for d in chain)


@pytest.mark.spec("2.7.5.3.1-driver-2")
def test_an_indirect_table_never_refers_to_another(bench):
    rig = bench(indirect=True)
    for count, head, _ in offer_many(rig):
        if count > 1:
            table = rig.desc(head)
            assert table.flags == INDIRECT
            assert table.len == 16 * count
            assert not any(rig.desc(i, table.addr).flags & INDIRECT for i in range(count))


@pytest.mark.spec("2.7.5.3.1-driver-3")
@INDIRECTLY
@pytest.mark.parametrize("excess", [1, 5])
def test_no_chain_of_more_descriptors_than_the_queue_has_is_offered(bench, indirect, excess):
    rig = bench(indirect=indirect)
    rig.entries = 16  # the tables would have room
    buffer = rig.buffer(16)
    driver, before = rig.driver, rig.snapshot()
    with pytest.raises(errors.InvalidChain):
        driver.add([buffer] * 3, [buffer] * (rig.size - 3 + excess))
    assert rig.snapshot() == before
    assert len(rig.buffers(driver.add([buffer] * rig.size))) == rig.size


@pytest.mark.spec("2.7.5.3.1-driver-4")
@INDIRECTLY
def test_indirect_and_next_never_stand_together(bench, indirect):
    rig = bench(indirect=indirect)
    for _, _, chain in offer_many(rig):
        assert not any(d.flags & INDIRECT and d.flags & NEXT for d in chain)


@pytest.mark.fault("A10")
@pytest.mark.spec("2.7.5.3.2-device-1")
@POLICIES
@pytest.mark.parametrize("on_the_table", [0, WRITE])
def test_write_on_the_descriptor_of_an_indirect_table_means_nothing(bench, strict, on_the_table):
    rig = bench(indirect=True, strict=strict)
    table, _ = rig.buffer(32)
    readable, writable = rig.buffer(16, b"r" * 16), rig.buffer(16)
    rig.poke_desc(0, *readable, NEXT, 1, table=table)
    rig.poke_desc(1, *writable, WRITE, table=table)
    rig.poke_desc(3, table, 32, INDIRECT | on_the_table)
    rig.offer(3)
    chain = rig.device.pop()
    assert [(d.addr, d.len, d.is_write_only) for d in chain] == [(*readable, False), (*writable, True)]
    assert chain.reader().read() == b"r" * 16


@pytest.mark.fault("A10")
@pytest.mark.spec("2.7.5.3.2-device-2")
@POLICIES
@pytest.mark.parametrize("inside", [1, 2])
@pytest.mark.parametrize("plain", [0, 1, 2, 6])
def test_plain_descriptors_may_stand_before_one_with_an_indirect_table(bench, strict, plain, inside):
    rig = bench(indirect=True, strict=strict)
    pieces = [(*rig.buffer(16, bytes([i]) * 16), 0) for i in range(plain + inside)]
    put_chain(rig, pieces, [5, 0, 7, 2, 4, 6, 1, 3], plain)
    assert rig.desc([5, 0, 7, 2, 4, 6, 1, 3][plain]).flags == INDIRECT
    rig.offer(5)
    chain = rig.device.pop()
    assert [(d.addr, d.len) for d in chain] == [(addr, length) for addr, length, _ in pieces]
    assert chain.reader().read() == b"".join(bytes([i]) * 16 for i in range(plain + inside))


@pytest.mark.fault("A10")
@pytest.mark.spec("2.7.5.3.2-device-2")
def test_a_full_queue_of_plain_descriptors_may_end_in_an_indirect_table_of_one(bench):
    rig = bench(indirect=True)
    pieces = [(*rig.buffer(16), 0) for _ in range(rig.size)]
    put_chain(rig, pieces, range(rig.size), rig.size - 1)
    rig.offer(0)
    assert len(list(rig.device.pop())) == rig.size


# -- 6.1 addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.spec("6.1-driver-3")
@INDIRECTLY
def test_every_address_offered_lies_in_guest_memory(bench, indirect):
    rig = bench(indirect=indirect)
    for _, _, chain in offer_many(rig):
        assert all(rig.memory.check_range(d.addr, d.len) for d in chain)
    start, end = rig.memory.regions[0].start, rig.memory.regions[0].end
    before = rig.snapshot()
    for foreign in [(start - 1, 16), (end - 8, 16), (end, 1), (0, 16), ((1 << 64) - 8, 16)]:
        with pytest.raises((errors.GuestMemory, errors.AddressOverflow)):
            rig.driver.add([rig.buffer(16), foreign])
        with pytest.raises((errors.GuestMemory, errors.AddressOverflow)):
            rig.driver.add([], [foreign])
    assert rig.snapshot() == before
