"""The driver half: what it writes for a chain, what it refuses, and when it kicks [2.7.13, 2.7.10]."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout

NEXT, WRITE, INDIRECT = 1, 2, 4
WRAPPED = (2**64, 2**70, -1, -(2**63))


def walk(r, head):
    """The chain as it stands in the table: (addr, len, device-writable) of each descriptor."""
    found, index, table = [], head, None
    while len(found) <= r.size:
        addr, length, flags, following = r.desc(index, table)
        if flags & INDIRECT:
            assert flags == INDIRECT
            index, table = 0, addr
            continue
        found.append((addr, length, bool(flags & WRITE)))
        if not flags & NEXT:
            return found
        index = following
    raise AssertionError("the chain does not end")


BUFFERS = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 64)), max_size=8)


@given(BUFFERS, BUFFERS, st.booleans())
def test_a_chain_is_written_readable_buffers_first(rig, readable, writable, indirect):
    r = rig(16, indirect=indirect)
    readable = [(r.buffers + offset, count) for offset, count in readable]
    writable = [(r.buffers + offset, count) for offset, count in writable]
    count = len(readable) + len(writable)
    if count == 0:
        with pytest.raises(errors.InvalidChain):
            r.driver.add(readable, writable)
        return
    token = r.driver.add(readable, writable)
    assert walk(r, token) == [(*buffer, False) for buffer in readable] + [(*buffer, True) for buffer in writable]
    in_table = indirect and 1 < count <= 4
    assert r.driver.num_free == 16 - (1 if in_table else count)
    assert bool(r.desc(token)[2] & INDIRECT) is in_table
    assert r.avail == 1
    assert r.word(r.layout.avail_ring + 4) == token


def test_any_sequence_of_pairs_will_do(rig):
    r = rig()
    buffers = [(r.buffers, 4), (r.buffers + 4, 4)]
    for shape in (buffers, tuple(buffers), [list(pair) for pair in buffers], dict(buffers).items()):
        token = r.driver.add(shape)
        assert walk(r, token) == [(r.buffers, 4, False), (r.buffers + 4, 4, False)]
    assert walk(r, r.driver.add(writable=[(r.buffers, True)])) == [(r.buffers, 1, True)]


def refused(r, error, *arguments, **options):
    """Assert that `add` raises and that neither shared memory nor the driver half has changed."""
    driver = r.driver
    before = bytes(r.bytes)
    counts = (driver.num_free, driver.in_flight)
    with pytest.raises(error) as caught:
        driver.add(*arguments, **options)
    assert r.bytes == before
    assert (driver.num_free, driver.in_flight) == counts
    assert driver.broken is None
    return caught.value


# What the compiled core turns into C integers before it looks at it is refused with OverflowError.
OUT_OF_RANGE = (errors.GuestMemory, errors.AddressOverflow, OverflowError)


@pytest.mark.parametrize("place", ["alone", "second", "writable"])
@pytest.mark.parametrize(
    ("addr", "length", "error"),
    [
        *((addr, 8, OUT_OF_RANGE) for addr in WRAPPED),
        (0, 8, errors.GuestMemory),
        (0xFFFF, 8, errors.GuestMemory),
        (2**64 - 8, 8, errors.AddressOverflow),
        (2**64 - 1, 2, errors.AddressOverflow),
        ("end", 1, errors.GuestMemory),
        ("last", 2, errors.GuestMemory),
        ("good", 0xFFFF_FFFF, errors.GuestMemory),
        ("good", 2**32, (errors.GuestMemory, errors.ChainTooLong)),
        ("good", 2**63, (*OUT_OF_RANGE, errors.ChainTooLong)),
        ("good", 2**64, OUT_OF_RANGE),
        ("good", 2**70, OUT_OF_RANGE),
        ("good", 0, errors.InvalidChain),
        ("good", -1, errors.InvalidChain),
        ("good", -(2**63), errors.InvalidChain),
        *((wrong, 8, TypeError) for wrong in (None, "65536", 65536.0, b"1", [1])),
        *(("good", wrong, TypeError) for wrong in (None, "8", 8.0, 1.5, b"8", [8])),
    ],
)
def test_a_buffer_that_cannot_be_is_refused_before_anything_is_written(rig, place, addr, length, error):
    r = rig()
    addr = {"end": r.end, "last": r.end - 1, "good": r.buffers}.get(addr, addr) if isinstance(addr, str) else addr
    good, bad = (r.buffers, 8), (addr, length)
    if place == "alone":
        refused(r, error, [bad])
    elif place == "second":
        refused(r, error, [good, bad], [good])
    else:
        refused(r, error, [good], [good, bad])
    assert walk(r, r.driver.add([good])) == [(r.buffers, 8, False)]


@pytest.mark.parametrize(
    "buffers",
    [7, None, "ab", b"ab", [7], [None], [(1,)], [(1, 2, 3)], [()], ["abc"], [b"ab", b"abc"], [{1: 2}], iter(())],
)
def test_what_is_no_sequence_of_pairs_is_refused(rig, buffers):
    r = rig()
    refused(r, (TypeError, ValueError), buffers)
    refused(r, (TypeError, ValueError), [(r.buffers, 8)], buffers)


def test_unknown_arguments_are_refused(rig):
    r = rig()
    refused(r, TypeError, [(r.buffers, 8)], [], [])
    refused(r, TypeError, [(r.buffers, 8)], published=True)


def test_a_chain_of_no_buffers_or_of_more_than_the_queue_has_is_refused(rig):
    r = rig(4)
    good = (r.buffers, 8)
    refused(r, errors.InvalidChain)
    refused(r, errors.InvalidChain, [], [])
    assert refused(r, errors.InvalidChain, [good] * 3, [good] * 2).facts["limit"] == 4
    assert r.driver.add([good] * 4) == 0


@pytest.mark.parametrize("writable", [0, 1, 8192, 16383])
def test_a_chain_has_at_most_2_to_the_32_minus_1_bytes(writable):
    """Readable and writable buffers together, since loops are forbidden by their sum [2.7.5.2]."""
    layout = SplitLayout.at(0x1000, 32768)
    buffer = (0x1000, 1 << 18)
    memory = GuestMemory([(0x1000, bytearray(layout.end))])
    driver = QueueConfig(layout).driver(memory)
    with pytest.raises(errors.ChainTooLong):
        driver.add([buffer] * (16384 - writable), [buffer] * writable)
    assert (driver.num_free, memory.read(layout.desc_table, 64)) == (32768, bytes(64))
    driver.add([(0x1000, (1 << 18) - 1), *[buffer] * (16383 - writable)], [buffer] * writable)


@pytest.mark.fault("G01")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_full_queue_refuses_and_overwrites_nothing(rig, indirect):
    """G01"""
    r = rig(8, indirect=indirect)
    good = (r.buffers, 8)
    for _ in range(2):
        r.driver.add([good] * 3)
    for _ in range(r.driver.num_free - 1):
        r.driver.add([good])
    error = refused(r, errors.QueueFull, [good] * (5 if indirect else 2))
    assert error.facts == {"free": 1, "in_flight": r.driver.in_flight}
    r.driver.add([good])
    refused(r, errors.QueueFull, [good])
    assert r.driver.num_free == 0


def test_an_unpublished_chain_is_not_seen_before_publish(rig):
    r = rig()
    tokens = [r.driver.add([(r.buffers, 8)], publish=False) for _ in range(3)]
    assert (r.avail, r.driver.in_flight) == (0, 3)
    assert r.device.pop() is None
    r.driver.publish()
    assert [chain.head_index for chain in r.device] == tokens
    r.driver.publish()
    assert r.avail == 3


# -- kicks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_kick_asked_for_before_publishing_is_not_forgotten(rig, event_idx):
    """The device sleeps; what is not published yet cannot have woken it."""
    r = rig(event_idx=event_idx)
    assert r.device.enable_notification() is False
    r.driver.add([(r.buffers, 8)], publish=False)
    assert r.driver.needs_kick() is False
    r.driver.publish()
    assert r.driver.needs_kick() is True
    assert r.driver.needs_kick() is False


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("laps", [65535, 65536, 65537])
def test_a_kick_not_asked_for_during_a_whole_lap_is_not_lost(rig, event_idx, laps):
    """A device that polls needs no kicks; when it goes to sleep the driver may have gone round the circle unasked."""
    r = rig(4, event_idx=event_idx)
    driver, device, buffer = r.driver, r.device, [(r.buffers, 8)]
    for _ in range(laps - 1):
        driver.add(buffer)
        device.add_used(device.pop_head(), 0)
        driver.reap()
    assert device.enable_notification() is False
    driver.add(buffer)
    assert driver.needs_kick() is True


def test_a_call_not_asked_for_during_a_whole_lap_is_not_lost(rig):
    """The same for the device half."""
    r = rig(4, event_idx=True)
    driver, device, buffer = r.driver, r.device, [(r.buffers, 8)]
    for _ in range(65535):
        driver.add(buffer)
        device.add_used(device.pop_head(), 0)
        driver.reap()
    driver.add(buffer)
    assert driver.enable_notification() is False
    device.add_used(device.pop_head(), 0)
    assert device.needs_notification() is True


@pytest.mark.fault("C09")
@given(st.lists(st.integers(0, 4), max_size=12), st.booleans())
def test_there_are_never_more_kicks_than_messages(rig, batches, event_idx):
    """C09: however eagerly the device asks to be kicked."""
    r = rig(4, event_idx=event_idx)
    kicks = messages = 0
    for count in batches:
        r.device.enable_notification()
        for _ in range(count):
            r.driver.add([(r.buffers, 8)])
            kicks += r.driver.needs_kick()
            kicks += r.driver.needs_kick()
        messages += count
        assert kicks <= messages
        for chain in r.device:
            r.device.add_used(chain.head_index, 0)
        while r.driver.reap():
            pass


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 65533])
@pytest.mark.parametrize("after", [-5, 0, 1, 2, 3, 4, 9, 2**40])
def test_a_call_may_be_asked_for_after_so_many_chains(rig, start, after):
    r = rig(event_idx=True, start=start)
    for _ in range(4):
        r.driver.add([(r.buffers, 8)])
    assert r.driver.enable_notification(after) is False
    called = []
    for chain in r.device:
        r.device.add_used(chain.head_index, 0)
        called.append(r.device.needs_notification())
    assert called.index(True) == max(1, min(after, 4)) - 1
    assert called.count(True) == 1


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_whoever_asks_to_be_called_learns_what_is_there_already(rig, event_idx):
    r = rig(event_idx=event_idx)
    for _ in range(3):
        r.driver.add([(r.buffers, 8)])
    assert r.driver.enable_notification() is False
    r.give_back(1)
    assert r.driver.enable_notification() is True
    assert r.driver.enable_notification(3) is (not event_idx)
    assert r.driver.used() == 1


def test_without_event_idx_flags_say_whether_to_call(rig):
    r = rig()
    r.driver.disable_notification()
    assert r.word(r.layout.avail_ring) == 1
    r.driver.enable_notification()
    assert r.word(r.layout.avail_ring) == 0
    quiet = rig(event_idx=True)
    quiet.driver.disable_notification()
    assert quiet.word(quiet.layout.avail_ring) == 0


@pytest.mark.parametrize("wrong", [None, "1", 1.5, b"1"])
def test_a_wrong_count_to_call_after_is_refused(rig, wrong):
    r = rig(event_idx=True)
    r.driver.add([(r.buffers, 8)])
    r.driver.add([(r.buffers, 8)])
    before = bytes(r.bytes)
    with pytest.raises(TypeError):
        r.driver.enable_notification(wrong)
    assert r.bytes == before


# -- reset, position, tables -------------------------------------------------------------------------------------------


@pytest.mark.fault("B10")
def test_after_a_reset_every_chain_in_flight_is_handed_back_once(rig):
    """B10"""
    r = rig(indirect=False)
    buffer = (r.buffers, 8)
    tokens = [r.driver.add([buffer] * count) for count in (1, 2, 3)]
    r.give_back(tokens[1])
    r.driver.reap()
    assert sorted(r.driver.detach_unused()) == sorted([tokens[0], tokens[2]])
    assert r.driver.detach_unused() == []
    assert (r.driver.num_free, r.driver.in_flight) == (8, 0)
    assert sorted(r.driver.add([buffer]) for _ in range(8)) == list(range(8))


@pytest.mark.parametrize("token", [-1, -(2**62), 8, 7, 0xFFFF, 2**62])
def test_a_token_that_was_not_handed_out_is_not_in_flight(rig, token):
    """The last descriptor is in flight here, which -1 would name."""
    r = rig(8)
    tokens = [r.driver.add([(r.buffers, 4)]) for _ in range(8)]
    for other in tokens[:-1] if token == -1 else tokens:
        r.give_back(other)
        assert r.driver.reap() == (other, 0)
    assert not r.driver.is_in_flight(token)
    assert r.driver.is_in_flight(tokens[-1]) is (token == -1)


def test_a_position_is_set_only_while_nothing_is_in_flight(rig):
    r = rig()
    r.poke_idx(avail=65535, used=65535)
    r.driver.seek(65535)
    r.driver.add([(r.buffers, 8)])
    assert r.avail == 0
    assert r.driver.last_used == 65535
    with pytest.raises(errors.InvalidState, match="1 chains are in flight"):
        r.driver.seek(5)
    r.give_back(0)
    assert r.driver.reap() == (0, 0)
    assert r.driver.last_used == 0
    for value in (65536, -1, 2**70):
        with pytest.raises((ValueError, OverflowError)):
            r.driver.seek(value)
    for wrong in (None, "1", 1.0):
        with pytest.raises(TypeError):
            r.driver.seek(wrong)
    assert r.driver.last_used == 0


@pytest.mark.parametrize("tables", [(0, 4), (2**64 - 64, 4), (2**64, 4), (-64, 4), (0x1_0000, 2**20), (0x1_0000, -1)])
def test_indirect_tables_must_lie_in_memory(rig, tables):
    r = rig()
    with pytest.raises((errors.GuestMemory, errors.AddressOverflow, ValueError, OverflowError)):
        r.config.driver(r.memory, indirect_tables=tables)


@pytest.mark.parametrize("tables", [7, (1,), (1, 2, 3), ("a", 4), (0x1_0000, "4"), (None, None)])
def test_indirect_tables_of_wrong_types_are_refused(rig, tables):
    r = rig()
    with pytest.raises((TypeError, ValueError)):
        r.config.driver(r.memory, indirect_tables=tables)


def test_tables_are_not_used_where_indirect_was_not_negotiated(rig):
    r = rig(indirect=False)
    r.driver.add([(r.buffers, 8)] * 3)
    assert r.driver.num_free == 5
    assert not r.desc(0)[2] & INDIRECT
