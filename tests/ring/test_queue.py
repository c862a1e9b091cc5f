"""`Queue`, the counterpart of `virtio-queue`: registers in any order, forgiving setters, seed policy unless strict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors
from vqshm.memory import GuestMemory
from vqshm.ring import Queue, QueueState

AREAS = ("desc_table", "avail_ring", "used_ring")
ALIGNMENT = {"desc_table": 16, "avail_ring": 2, "used_ring": 4}
ALIGN_ERROR = {
    "desc_table": errors.InvalidDescTableAlign,
    "avail_ring": errors.InvalidAvailRingAlign,
    "used_ring": errors.InvalidUsedRingAlign,
}
FRESH = QueueState(8, 0, 0, False, 8, False, 0, 0, 0)
OUT_OF_U64 = (2**64, 2**70, -16, -(2**64))


def configured(r, *, strict=False, event_idx=False):
    """A ready queue over the rings of a rig."""
    queue = Queue(r.size, strict=strict, name="blk")
    for area in AREAS:
        address = getattr(r.layout, area)
        assert getattr(queue, f"set_{area}_address")(address & 0xFFFF_FFFF, address >> 32)
    queue.set_event_idx(event_idx)
    queue.set_ready(True)
    return queue


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.fault("A23")
@pytest.mark.parametrize("size", [0, -1, 3, 48, 32769, 65536, 2**70])
def test_a_max_size_that_cannot_be_is_refused(size):
    with pytest.raises(errors.InvalidMaxSize):
        Queue(size)


@pytest.mark.parametrize("wrong", [None, "8", 8.0, b"8"])
def test_wrong_types_are_refused(wrong):
    with pytest.raises(TypeError):
        Queue(wrong)
    queue = Queue(8)
    calls = [queue.set_size, queue.try_set_size, queue.set_next_avail, queue.set_next_used]
    if wrong is not None:  # None keeps that half of an address
        calls += [getattr(queue, f"set_{area}_address") for area in AREAS]
    for call in calls:
        with pytest.raises(TypeError):
            call(wrong)
    for area in AREAS:
        with pytest.raises((TypeError, ValueError)):
            getattr(queue, f"try_set_{area}_address")(1.5 if wrong == 8.0 else wrong)
    assert queue.state() == FRESH


@pytest.mark.fault("A23")
@given(st.integers(-5, 70_000))
def test_a_size_that_is_not_acceptable_changes_nothing(size):
    queue = Queue(256)
    good = size in {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert queue.set_size(size) is good
    assert queue.size == (size if good else 256)
    if not good:
        with pytest.raises(errors.InvalidSize):
            queue.try_set_size(size)
        assert queue.size == 256


@pytest.mark.fault("A23")
@pytest.mark.parametrize("area", AREAS)
@given(low=st.one_of(st.none(), st.integers(0, 2**32 - 1)), high=st.one_of(st.none(), st.integers(0, 2**32 - 1)))
def test_an_address_is_written_by_halves_and_only_if_aligned(area, low, high):
    queue = Queue(8)
    old = 0x1234_5678_9ABC_DEF0
    getattr(queue, f"try_set_{area}_address")(old)
    new = (old >> 32 if high is None else high) << 32 | (old & 0xFFFF_FFFF if low is None else low)
    good = new % ALIGNMENT[area] == 0
    assert getattr(queue, f"set_{area}_address")(low, high) is good
    assert getattr(queue, area) == (new if good else old)
    if not good:
        with pytest.raises(ALIGN_ERROR[area]):
            getattr(queue, f"try_set_{area}_address")(new)
        assert getattr(queue, area) == old


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("value", OUT_OF_U64)
def test_an_address_of_more_than_64_bits_is_refused(area, value):
    queue = Queue(8)
    with pytest.raises(errors.AddressOverflow):
        getattr(queue, f"try_set_{area}_address")(value)
    assert queue.state() == FRESH


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("value", [2**32, 2**64, -1, -16])
def test_half_an_address_has_32_bits(area, value):
    queue = Queue(8)
    for low, high in ((value, None), (None, value), (value, 0), (0, value)):
        with pytest.raises(ValueError, match="32 bits"):
            getattr(queue, f"set_{area}_address")(low, high)
    assert queue.state() == FRESH


@pytest.mark.parametrize("value", [65536, 2**70, -1])
def test_a_position_that_is_not_u16_is_refused(rig, value):
    for queue in (Queue(8), configured(rig())):
        for setter in (queue.set_next_avail, queue.set_next_used):
            with pytest.raises(ValueError, match=r"0\.\.65535"):
                setter(value)
        assert (queue.next_avail, queue.next_used) == (0, 0)


def test_a_reset_queue_is_as_a_fresh_one(rig):
    r = rig(event_idx=True)
    queue = configured(r, event_idx=True)
    r.driver.add([(r.buffers, 4)])
    assert queue.pop_descriptor_chain(r.memory) is not None
    queue.reset()
    assert queue.state() == FRESH
    with pytest.raises(errors.QueueNotReady):
        queue.iter(r.memory)


def test_a_queue_is_valid_if_it_is_ready_and_its_areas_exist(rig):
    r = rig()
    queue = configured(r)
    assert queue.is_valid(r.memory)
    queue.set_ready(False)
    assert not queue.is_valid(r.memory)
    queue.set_ready(True)
    assert not queue.is_valid(GuestMemory([(0, bytearray(64))]))
    for area in AREAS:
        queue = configured(r)
        getattr(queue, f"try_set_{area}_address")(r.end - 16)
        assert not queue.is_valid(r.memory)


# -- operation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])
def test_an_unready_queue_gives_no_chains(rig, strict):
    r = rig()
    r.driver.add([(r.buffers, 4)])
    for queue in (Queue(8, strict=strict), configured(r, strict=strict)):
        queue.set_ready(False)
        with pytest.raises(errors.QueueNotReady):
            queue.iter(r.memory)
        if strict:
            with pytest.raises(errors.QueueNotReady):
                queue.pop_descriptor_chain(r.memory)
        else:
            assert queue.pop_descriptor_chain(r.memory) is None


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_queue_serves_a_driver(rig, strict, event_idx):
    r = rig(event_idx=event_idx, start=65534)
    queue = configured(r, strict=strict, event_idx=event_idx)
    queue.set_next_avail(65534)
    queue.set_next_used(65534)
    assert queue.enable_notification(r.memory) is False
    tokens = [r.driver.add([(r.buffers, 4)], [(r.buffers + 8, 4)]) for _ in range(4)]
    assert r.driver.needs_kick()
    r.driver.enable_notification()
    assert queue.avail_idx(r.memory) == 2
    heads = []
    for chain in queue.iter(r.memory):
        chain.writer().write_all(b"done")
        queue.add_used(r.memory, chain.head_index, 4)
        heads.append(chain.head_index)
    assert heads == tokens
    assert queue.used_idx(r.memory) == 2
    assert queue.needs_notification(r.memory)
    assert [r.driver.reap() for _ in range(5)] == [*((token, 4) for token in tokens), None]
    assert (queue.next_avail, queue.next_used) == (2, 2)


@pytest.mark.fault("A01")
def test_a_strict_queue_names_the_rule_and_stops_until_it_is_reset(rig):
    r = rig()
    queue = configured(r, strict=True)
    r.offer(99)
    with pytest.raises(errors.InvalidDescriptorIndex, match="blk: ") as caught:
        queue.pop_descriptor_chain(r.memory)
    assert isinstance(caught.value, errors.PeerViolation)
    with pytest.raises(errors.QueueBroken):
        queue.pop_descriptor_chain(r.memory)
    queue.reset()
    assert queue.state() == FRESH


def test_a_seed_queue_swallows_what_is_wrong_as_the_seed_does(rig):
    r = rig()
    queue = configured(r)
    r.poke_idx(avail=9)
    assert queue.pop_descriptor_chain(r.memory) is None
    with pytest.raises(errors.InvalidAvailRingIndex):
        queue.iter(r.memory)
    r.poke_idx(avail=1)
    assert queue.pop_descriptor_chain(r.memory) is not None


def test_the_memory_may_change_between_two_calls(rig):
    one, other = rig(), rig()
    queue = configured(one)
    one.driver.add([(one.buffers, 4)])
    other.driver.add([(other.buffers, 5)])
    other.driver.add([(other.buffers, 6)])
    assert [d.len for d in queue.pop_descriptor_chain(one.memory)] == [4]
    assert [d.len for d in queue.pop_descriptor_chain(other.memory)] == [6]
    assert queue.pop_descriptor_chain(one.memory) is None


def test_positions_can_be_moved_while_the_queue_runs(rig):
    r = rig()
    queue = configured(r)
    for _ in range(3):
        r.driver.add([(r.buffers, 4)])
    assert queue.pop_descriptor_chain(r.memory).head_index == 0
    queue.go_to_previous_position()
    assert queue.next_avail == 0
    queue.set_next_avail(2)
    assert queue.pop_descriptor_chain(r.memory).head_index == 2
    queue.set_next_used(65535)
    queue.add_used(r.memory, 2, 0)
    assert (r.used, queue.next_used) == (0, 0)


@pytest.mark.parametrize("first", [False, True], ids=["before it ran", "running"])
def test_going_back_from_position_0_wraps(rig, first):
    r = rig()
    queue = configured(r)
    if first:
        assert queue.pop_descriptor_chain(r.memory) is None
    queue.go_to_previous_position()
    assert queue.next_avail == 65535


# -- state -------------------------------------------------------------------------------------------------------------

U16 = st.integers(0, 65535)
SIZES = st.sampled_from([1 << shift for shift in range(16)])
STATES = st.builds(
    QueueState,
    max_size=st.just(32768),
    next_avail=U16,
    next_used=U16,
    event_idx_enabled=st.booleans(),
    size=SIZES,
    ready=st.booleans(),
    desc_table=st.integers(0, 2**60 - 1).map(lambda n: n * 16),
    avail_ring=st.integers(0, 2**63 - 1).map(lambda n: n * 2),
    used_ring=st.integers(0, 2**62 - 1).map(lambda n: n * 4),
)


@given(STATES)
def test_a_state_survives_its_restoration(state):
    queue = Queue.from_state(state)
    assert queue.state() == state
    assert QueueState.from_map(state.as_map()) == state
    assert Queue.from_state(queue.state()).state() == state


@given(STATES, st.integers(0, 8))
def test_a_restored_queue_goes_on_where_the_other_stopped(rig, state, taken):
    r = rig(start=state.next_avail)
    queue = configured(r)
    queue.set_next_avail(r.start)
    tokens = [r.driver.add([(r.buffers, 4)]) for _ in range(8)]
    heads = [queue.pop_descriptor_chain(r.memory).head_index for _ in range(taken)]
    queue = Queue.from_state(QueueState.from_map(queue.state().as_map()))
    heads += [chain.head_index for chain in queue.iter(r.memory)]
    assert heads == tokens


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"max_size": 0}, errors.InvalidMaxSize),
        ({"max_size": 65536}, errors.InvalidMaxSize),
        ({"size": 3}, errors.InvalidSize),
        ({"size": 16}, errors.InvalidSize),
        ({"desc_table": 8}, errors.InvalidDescTableAlign),
        ({"avail_ring": 1}, errors.InvalidAvailRingAlign),
        ({"used_ring": 2}, errors.InvalidUsedRingAlign),
        ({"desc_table": 2**64}, errors.AddressOverflow),
        ({"used_ring": -4}, errors.AddressOverflow),
        ({"next_avail": 65536}, ValueError),
        ({"next_used": -1}, ValueError),
        ({"max_size": "8"}, TypeError),
        ({"size": None}, TypeError),
        ({"next_avail": 1.0}, TypeError),
        ({"desc_table": b"0"}, TypeError),
        ({"max_size": 9, "size": 3, "desc_table": 1}, errors.InvalidMaxSize),
        ({"size": 3, "desc_table": 1, "used_ring": 1}, errors.InvalidSize),
    ],
)
def test_a_state_that_cannot_be_is_refused(change, error):
    state = QueueState(**{**FRESH.as_map(), **change})
    with pytest.raises(error):
        Queue.from_state(state)


def test_a_queue_that_belongs_to_one_thread_locks_by_doing_nothing():
    queue = Queue(8)
    with queue.lock() as inner:
        assert inner is queue
