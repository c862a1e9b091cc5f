"""A device that breaks the rules: the driver names the rule, reaps nothing, and loses no buffer (faults B01 to B11)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors
from vqshm.ring import QueueConfig, SplitLayout

SIZE = 8


def all_tokens(driver, buffer):
    """Fill the queue with single buffers: the tokens handed out, which show what the free list holds."""
    tokens = []
    while driver.num_free:
        tokens.append(driver.add([buffer]))
    with pytest.raises(errors.QueueFull):
        driver.add([buffer])
    return tokens


def busy(rig, **options):
    """A queue with three chains in flight: 0 (one descriptor), 1 (two descriptors: 1, 2) and 3 (one, indirect)."""
    r = rig(SIZE, indirect=False, **options)
    assert r.driver.add([(r.buffers, 8)]) == 0
    assert r.driver.add([(r.buffers, 8)], [(r.buffers + 8, 16)]) == 1
    assert r.driver.add([], [(r.buffers + 64, 32)]) == 3
    return r


FAULTS = {
    "B01 id = size": (errors.InvalidUsedId, lambda r: r.give_back(SIZE)),
    "B01 id = size + 1": (errors.InvalidUsedId, lambda r: r.give_back(SIZE + 1)),
    "B01 id = 65536": (errors.InvalidUsedId, lambda r: r.give_back(65536)),
    "B01 id = 2^31": (errors.InvalidUsedId, lambda r: r.give_back(2**31)),
    "B01 id = 0xffffffff": (errors.InvalidUsedId, lambda r: r.give_back(0xFFFF_FFFF)),
    "B02 never offered": (errors.UsedIdNotInFlight, lambda r: r.give_back(5)),
    "B03 not a head": (errors.UsedIdNotInFlight, lambda r: r.give_back(2)),
    "A30 one more than writable": (errors.InvalidUsedLength, lambda r: r.give_back(1, 17)),
    "A30 nothing is writable": (errors.InvalidUsedLength, lambda r: r.give_back(0, 1)),
    "A30 0xffffffff": (errors.InvalidUsedLength, lambda r: r.give_back(1, 0xFFFF_FFFF)),
    "B08 one more than in flight": (errors.InvalidUsedRingIndex, lambda r: r.poke_idx(used=r.start + 4)),
    "B08 a whole queue": (errors.InvalidUsedRingIndex, lambda r: r.poke_idx(used=r.start + SIZE)),
    "B08 half the circle": (errors.InvalidUsedRingIndex, lambda r: r.poke_idx(used=r.start + 32768)),
    "B08 back by one": (errors.InvalidUsedRingIndex, lambda r: r.poke_idx(used=r.start - 1)),
    "B08 back by many": (errors.InvalidUsedRingIndex, lambda r: r.poke_idx(used=r.start - 300)),
}
EACH = [pytest.param(name, marks=pytest.mark.fault(name.split()[0])) for name in FAULTS]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("start", [0, 65535])
def test_a_used_ring_that_breaks_a_rule_is_refused_by_name_and_stops_the_queue(rig, assert_stopped, name, start):
    error, write = FAULTS[name]
    r = busy(rig, start=start, name="tx")
    write(r)
    before = bytes(r.bytes)
    with pytest.raises(error) as caught:
        r.driver.reap()
    assert type(caught.value).__name__ == error.__name__
    assert "index" in caught.value.facts
    assert (r.driver.in_flight, r.driver.num_free, r.driver.last_used) == (3, SIZE - 4, start)
    assert_stopped(r.driver, caught.value)
    changed = [i for i, (a, b) in enumerate(zip(before, r.bytes, strict=True)) if a != b]
    wish = r.layout.avail_ring - 0x1_0000  # `assert_stopped` asks for a call, which the driver may write down
    assert all(wish <= i < wish + 2 for i in changed)


@pytest.mark.fault("B10")
@pytest.mark.parametrize("name", EACH)
def test_no_buffer_is_lost_to_a_broken_device(rig, name):
    """B10: after the reset every chain in flight is handed back once, and the free list is whole."""
    error, write = FAULTS[name]
    r = busy(rig)
    write(r)
    with pytest.raises(error):
        r.driver.reap()
    assert r.driver.detach_unused() == [0, 1, 3]
    assert r.driver.detach_unused() == []
    assert (r.driver.in_flight, r.driver.num_free) == (0, SIZE)


@pytest.mark.parametrize("name", EACH)
def test_one_broken_used_ring_leaves_the_other_queues_alone(rig, name):
    error, write = FAULTS[name]
    r = busy(rig)
    other = QueueConfig(SplitLayout.at(r.buffers + 0x8000, SIZE), name="other")
    driver, device = other.driver(r.memory), other.device(r.memory)
    driver.add([(r.buffers, 4)])
    write(r)
    with pytest.raises(error):
        r.driver.reap()
    device.add_used(device.pop().head_index, 0)
    assert driver.reap() == (0, 0)
    assert driver.broken is None


@pytest.mark.fault("B04")
@pytest.mark.parametrize("between", [(), (0,), (3, 0)], ids=["at once", "later", "when nothing is in flight"])
def test_a_chain_cannot_be_returned_twice(rig, assert_stopped, between):
    """B04"""
    r = busy(rig)
    for token in (1, *between):
        r.give_back(token)
        assert r.driver.reap() == (token, 0)
    r.give_back(1)
    with pytest.raises(errors.UsedIdNotInFlight if r.driver.in_flight else errors.InvalidUsedRingIndex) as caught:
        r.driver.reap()
    assert_stopped(r.driver, caught.value)
    assert sorted(r.driver.detach_unused()) == sorted({0, 3} - set(between))


@pytest.mark.fault("B04")
def test_the_same_id_twice_in_one_batch_is_reaped_once(rig, assert_stopped):
    """B04"""
    r = busy(rig)
    r.give_back(3, 5)
    r.give_back(3, 5)
    assert r.driver.reap() == (3, 5)
    with pytest.raises(errors.UsedIdNotInFlight) as caught:
        r.driver.reap()
    assert_stopped(r.driver, caught.value)
    assert r.driver.in_flight == 2


@pytest.mark.fault("B06")
@pytest.mark.parametrize("written", [0, 1, 15, 16])
def test_a_length_that_the_chain_can_hold_is_returned_as_it_is(rig, written):
    """B06: also 0, and less than the protocol on top needs."""
    r = busy(rig)
    r.give_back(1, written)
    assert r.driver.reap() == (1, written)


@pytest.mark.fault("B11")
@given(st.permutations(range(SIZE)), st.sampled_from([0, 65530, 65535]), st.integers(1, SIZE))
def test_chains_may_come_back_in_any_order_and_in_bulk(rig, order, start, bulk):
    """B11: also across the wrap of the positions; afterwards the free list is a permutation."""
    r = rig(SIZE, start=start)
    tokens = [r.driver.add([], [(r.buffers + 64 * i, 1 + i)]) for i in range(SIZE)]
    assert sorted(tokens) == list(range(SIZE))
    reaped = []
    for at in range(0, SIZE, bulk):
        for i in order[at : at + bulk]:
            r.give_back(tokens[i], 1 + i)
        while (returned := r.driver.reap()) is not None:
            reaped.append(returned)
    assert reaped == [(tokens[i], 1 + i) for i in order]
    assert (r.driver.num_free, r.driver.in_flight) == (SIZE, 0)
    assert sorted(all_tokens(r.driver, (r.buffers, 1))) == list(range(SIZE))


@pytest.mark.fault("B04")
@pytest.mark.parametrize("start", [0, 65533])
def test_the_free_list_stays_a_permutation_through_chains_of_every_length(rig, start):
    r = rig(SIZE, indirect=False, start=start)
    buffer = (r.buffers, 4)
    for lengths in ((1, 2, 5), (3, 3, 2), (8,), (1,) * 8, (2, 2, 2, 2), (7, 1)):
        tokens = [r.driver.add([buffer] * count) for count in lengths]
        assert r.driver.num_free == 0
        for token in (*tokens[1::2], *tokens[::2]):
            r.give_back(token)
            assert r.driver.reap() == (token, 0)
        assert r.driver.num_free == SIZE
    assert sorted(all_tokens(r.driver, buffer)) == list(range(SIZE))


@pytest.mark.fault("B09")
@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.booleans(), st.lists(st.integers(0, 3), max_size=4))
def test_garbage_in_used_flags_and_avail_event_costs_kicks_at_most(rig, flags, event, event_idx, batches):
    """B09: the answer is yes or no, and never an error; without EVENT_IDX only bit 0 of flags silences the driver."""
    r = rig(16, event_idx=event_idx)
    r.poke_flags(used=flags)
    r.poke_event(avail_event=event)
    position = 0
    for count in batches:
        for _ in range(count):
            r.driver.add([(r.buffers, 4)])
        wanted = position <= event < position + count if event_idx else count > 0 and not flags & 1
        assert r.driver.needs_kick() is wanted
        position += count
    assert r.driver.broken is None


@pytest.mark.fault("B10")
def test_a_device_that_never_answers_costs_a_none(rig):
    """B10: how long to wait is not the ring's affair; nothing is lost by asking."""
    r = busy(rig)
    for _ in range(100):
        assert r.driver.reap() is None
        assert r.driver.used() == 0
    assert r.driver.in_flight == 3
    assert r.driver.broken is None


def test_a_violation_is_raised_once(rig):
    r = busy(rig)
    r.give_back(99)
    seen = []
    for _ in range(50):
        with pytest.raises(errors.VqshmError) as caught:
            r.driver.reap()
        seen.append(isinstance(caught.value, errors.PeerViolation))
    assert seen == [True] + 49 * [False]


def test_what_the_device_writes_into_the_drivers_areas_changes_nothing(rig):
    """The shadow: the driver never reads back its own descriptors and available ring."""
    r = busy(rig)
    area = r.layout.used_ring - r.layout.desc_table
    r.poke(r.layout.desc_table, b"\xff" * area)
    for token, written in ((3, 32), (0, 0), (1, 16)):
        r.give_back(token, written)
        assert r.driver.reap() == (token, written)
    assert sorted(all_tokens(r.driver, (r.buffers, 1))) == list(range(SIZE))
