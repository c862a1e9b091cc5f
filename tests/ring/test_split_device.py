"""The device half: taking, undoing, returning, and when it calls [2.7.8, 2.7.7, 2.7.13]."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors
from vqshm.ring import AvailIter

POLICIES = pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])


def posted(rig, count, **options):
    """A queue of 8 with `count` chains of four readable and four writable bytes, direct, on offer: heads 0, 2, 4 …"""
    r = rig(8, indirect=False, **options)
    for _ in range(count):
        r.driver.add([(r.buffers, 4)], [(r.buffers + 4, 4)])
    return r


# -- taking ------------------------------------------------------------------------------------------------------------


@POLICIES
@pytest.mark.parametrize("start", [0, 65534])
def test_chains_are_taken_in_the_order_of_their_offer(rig, strict, start):
    r = posted(rig, 4, strict=strict, start=start)
    assert r.device.available() == 4
    assert [r.device.pop().head_index for _ in range(4)] == [0, 2, 4, 6]
    assert r.device.pop() is None
    assert r.device.pop_head() == -1
    assert r.device.available() == 0
    assert r.device.next_avail == (start + 4) & 0xFFFF


@POLICIES
@pytest.mark.parametrize("start", [0, 65534])
def test_an_iteration_takes_what_was_there_when_it_began(rig, strict, start):
    r = posted(rig, 2, strict=strict, start=start)
    iterator = iter(r.device)
    assert iter(iterator) is iterator
    assert next(iterator).head_index == 0
    r.driver.add([(r.buffers, 4)])
    assert [chain.head_index for chain in iterator] == [2]
    assert [chain.head_index for chain in r.device] == [4]
    assert list(r.device) == []
    assert r.device.next_avail == (start + 3) & 0xFFFF


@POLICIES
@pytest.mark.parametrize("start", [0, 65534])
def test_an_iteration_takes_heads_without_their_chains(rig, strict, start):
    r = posted(rig, 3, strict=strict, start=start)
    iterator = iter(r.device)
    assert [iterator.next_head() for _ in range(4)] == [0, 2, 4, -1]
    assert r.device.next_avail == (start + 3) & 0xFFFF


@POLICIES
def test_an_iteration_ends_if_somebody_else_took_the_rest(rig, strict):
    r = posted(rig, 2, strict=strict)
    iterator = iter(r.device)
    assert [r.device.pop_head(), r.device.pop_head()] == [0, 2]
    assert iterator.next_head() == -1


def test_an_iteration_does_not_run_past_what_was_offered(rig):
    """Somebody else took more than was there when it began: it must not go round the circle to meet its end."""
    r = posted(rig, 2)
    iterator = iter(r.device)
    r.driver.add([(r.buffers, 4)])
    assert [r.device.pop_head() for _ in range(3)] == [0, 2, 4]
    assert iterator.next_head() == -1
    assert next(iterator, None) is None
    assert r.device.next_avail == 3


@pytest.mark.parametrize("head", [-1, -(2**31), 8, 2, 0xFFFF, 2**31 - 1])
def test_a_chain_is_walked_only_while_it_is_in_flight(rig, head):
    r = posted(rig, 3)
    r.device.pop_head()
    with pytest.raises(errors.InvalidState):
        r.device.chain(head)
    assert r.device.broken is None
    assert r.device.chain(0).head_index == 0
    r.device.add_used(0, 4)
    with pytest.raises(errors.InvalidState):
        r.device.chain(0)


def test_a_negative_head_is_refused_in_seed_policy_too(rig):
    r = posted(rig, 1, strict=False)
    with pytest.raises(errors.InvalidState):
        r.device.chain(-1)


# -- going back --------------------------------------------------------------------------------------------------------


@POLICIES
@pytest.mark.parametrize("start", [0, 65535])
def test_the_last_pop_can_be_undone(rig, strict, start):
    r = posted(rig, 3, strict=strict, start=start)
    assert [r.device.pop().head_index for _ in range(2)] == [0, 2]
    r.device.go_to_previous_position()
    r.device.go_to_previous_position()
    assert r.device.next_avail == start
    assert [chain.head_index for chain in r.device] == [0, 2, 4]


def test_what_was_not_taken_or_was_returned_cannot_be_undone(rig):
    r = posted(rig, 2)
    with pytest.raises(errors.InvalidState, match="at position 65535"):
        r.device.go_to_previous_position()
    head = r.device.pop_head()
    r.device.add_used(head, 0)
    with pytest.raises(errors.InvalidState, match="at position 0"):
        r.device.go_to_previous_position()
    assert (r.device.next_avail, r.device.broken) == (1, None)
    assert r.device.pop_head() == 2


def test_a_chain_that_was_put_back_cannot_be_returned(rig):
    r = posted(rig, 1)
    r.device.pop()
    r.device.go_to_previous_position()
    with pytest.raises(errors.UsedIdNotInFlight):
        r.device.add_used(0, 0)
    r.device.pop()
    r.device.add_used(0, 4)
    assert r.driver.reap() == (0, 4)


# -- returning ---------------------------------------------------------------------------------------------------------


@POLICIES
@given(order=st.permutations([0, 2, 4, 6]), start=st.sampled_from([0, 65533, 65535]))
def test_chains_may_be_returned_in_any_order(rig, strict, order, start):
    r = posted(rig, 4, strict=strict, start=start)
    for _ in range(4):
        r.device.pop()
    for head in order:
        r.device.add_used(head, head % 5)
    assert [r.driver.reap() for _ in range(5)] == [*((head, head % 5) for head in order), None]
    assert r.used == (start + 4) & 0xFFFF


@pytest.mark.parametrize("head", [1, 2, 4, 7])
def test_only_a_chain_in_flight_can_be_returned(rig, head):
    """Not a descriptor inside of a chain, not one still on offer, not one that does not exist, and none twice."""
    r = posted(rig, 3)
    r.device.pop()
    before = bytes(r.bytes)
    with pytest.raises(errors.UsedIdNotInFlight) as caught:
        r.device.add_used(head, 0)
    assert not isinstance(caught.value, errors.PeerViolation)
    assert r.bytes == before
    r.device.add_used(0, 4)
    with pytest.raises(errors.UsedIdNotInFlight):
        r.device.add_used(0, 4)
    assert r.used == 1


@POLICIES
@pytest.mark.parametrize("head", [8, -1, 0xFFFF, 2**31, 2**63 - 1, -(2**63), 2**70])
def test_a_head_out_of_range_cannot_be_returned(rig, strict, head):
    r = posted(rig, 1, strict=strict)
    r.device.pop()
    before = bytes(r.bytes)
    with pytest.raises((errors.InvalidDescriptorIndex, OverflowError)):
        r.device.add_used(head, 0)
    assert r.bytes == before


@POLICIES
@pytest.mark.parametrize("written", [2**32, -1, 2**63 - 1, -(2**63), 2**70])
def test_a_length_that_is_not_32_bits_cannot_be_returned(rig, strict, written):
    r = posted(rig, 1, strict=strict)
    r.device.pop()
    before = bytes(r.bytes)
    with pytest.raises((errors.InvalidUsedLength, OverflowError)):
        r.device.add_used(0, written)
    assert r.bytes == before
    r.device.add_used(0, 4)
    assert r.driver.reap() == (0, 4)


@POLICIES
@pytest.mark.parametrize("wrong", [None, "0", 0.0, 1.5, b"0", [0]])
def test_wrong_types_are_refused_before_anything_is_written(rig, strict, wrong):
    r = posted(rig, 2, strict=strict)
    r.device.pop()
    before = bytes(r.bytes)
    for call in (
        lambda: r.device.add_used(wrong, 0),
        lambda: r.device.add_used(0, wrong),
        lambda: list(r.device.chain(wrong)),
        lambda: r.device.seek(wrong, 0),
        lambda: r.device.seek(0, wrong),
        lambda: AvailIter(wrong),
    ):
        with pytest.raises((TypeError, AttributeError)):
            call()
    assert r.bytes == before
    r.device.add_used(0, 4)
    assert r.driver.reap() == (0, 4)
    assert r.device.pop().head_index == 2


def test_a_head_taken_without_its_chain_can_be_returned_empty_only(rig):
    r = posted(rig, 1)
    head = r.device.pop_head()
    with pytest.raises(errors.InvalidUsedLength):
        r.device.add_used(head, 1)
    r.device.add_used(head, 0)
    assert r.driver.reap() == (0, 0)


@POLICIES
@pytest.mark.parametrize("start", [0, 65534])
def test_what_was_put_is_seen_when_it_is_published(rig, strict, start):
    r = posted(rig, 4, strict=strict, start=start)
    heads = [r.device.pop().head_index for _ in range(4)]
    for done, head in enumerate(reversed(heads)):
        r.device.put_used(head, done)
        assert r.used == start
        assert r.device.next_used == (start + done + 1) & 0xFFFF
        assert r.driver.used() == 0
    r.device.publish_used()
    assert r.used == (start + 4) & 0xFFFF
    assert [r.driver.reap() for _ in range(5)] == [*zip(reversed(heads), range(4), strict=True), None]
    r.device.publish_used()
    assert r.used == (start + 4) & 0xFFFF


@given(st.lists(st.booleans(), max_size=20))
def test_putting_and_publishing_is_returning(rig, plan):
    """However often it is published: the driver gets the same, and no later than it was shown."""
    r, twin = rig(8), rig(8)
    for i, publish in enumerate(plan):
        for queue in (r, twin):
            queue.driver.add([], [(queue.buffers, 4)])
        r.device.put_used(r.device.pop().head_index, i % 5)
        twin.device.add_used(twin.device.pop().head_index, i % 5)
        if publish or r.device.next_used - r.used >= 7:
            r.device.publish_used()
        shown = r.driver.used()
        assert [r.driver.reap() for _ in range(shown)] == [twin.driver.reap() for _ in range(shown)]
    r.device.publish_used()
    rest = r.driver.used()
    assert [r.driver.reap() for _ in range(rest)] == [twin.driver.reap() for _ in range(rest)]
    assert twin.driver.reap() is None


@pytest.mark.parametrize("event_idx", [True, False])
def test_one_call_is_needed_for_all_that_were_published_together(rig, event_idx):
    r = posted(rig, 4, event_idx=event_idx)
    heads = [r.device.pop().head_index for _ in range(4)]
    r.driver.enable_notification()
    for head in heads:
        r.device.put_used(head, 0)
    r.device.publish_used()
    assert r.device.needs_notification()
    assert not r.device.needs_notification()


def test_what_add_used_refuses_put_used_refuses_and_nothing_is_written(rig):
    r = posted(rig, 2)
    r.device.pop()
    before = bytes(r.bytes)
    for head, written, error in (
        (8, 0, errors.InvalidDescriptorIndex),
        (-1, 0, errors.InvalidDescriptorIndex),
        (2, 0, errors.UsedIdNotInFlight),
        (0, 5, errors.InvalidUsedLength),
        (0, 1 << 32, errors.InvalidUsedLength),
        (0, -1, errors.InvalidUsedLength),
        (None, 0, TypeError),
        (0, "4", TypeError),
    ):
        with pytest.raises(error):
            r.device.put_used(head, written)
    assert bytes(r.bytes) == before
    assert r.device.next_used == 0
    r.device.put_used(0, 4)
    with pytest.raises(errors.UsedIdNotInFlight):
        r.device.put_used(0, 4)


def test_a_broken_queue_takes_nothing_back(rig):
    r = posted(rig, 1)
    r.device.pop()
    r.offer(8)
    with pytest.raises(errors.InvalidDescriptorIndex):
        r.device.pop()
    with pytest.raises(errors.QueueBroken):
        r.device.put_used(0, 0)


# -- positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [65536, -1, 2**31, 2**70, -(2**70)])
def test_a_position_that_is_not_u16_is_refused(rig, position):
    r = rig()
    for call in (lambda: r.device.seek(position, 0), lambda: r.device.seek(0, position)):
        with pytest.raises((ValueError, OverflowError)):
            call()
    assert (r.device.next_avail, r.device.next_used) == (0, 0)


@pytest.mark.parametrize("position", [0, 1, 32768, 65535])
def test_a_device_goes_on_where_it_is_told(rig, position):
    r = rig(start=position)
    r.driver.add([(r.buffers, 4)])
    assert (r.device.next_avail, r.device.next_used) == (position, position)
    r.device.add_used(r.device.pop().head_index, 0)
    assert r.used == (position + 1) & 0xFFFF


# -- notifications -----------------------------------------------------------------------------------------------------


@POLICIES
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_whoever_asks_to_be_kicked_learns_what_is_waiting_already(rig, strict, event_idx):
    r = posted(rig, 1, strict=strict, event_idx=event_idx)
    assert r.device.enable_notification() is True
    r.device.pop()
    assert r.device.enable_notification() is False


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_call_is_needed_once_for_what_was_returned_since_the_last(rig, event_idx):
    r = posted(rig, 3, event_idx=event_idx)
    assert r.device.needs_notification() is False
    r.driver.enable_notification()
    for _ in range(3):
        r.device.add_used(r.device.pop().head_index, 0)
    assert r.device.needs_notification() is True
    assert r.device.needs_notification() is False


def test_without_event_idx_flags_say_whether_to_kick(rig):
    r = rig()
    r.device.disable_notification()
    assert r.word(r.layout.used_ring) == 1
    r.driver.add([(r.buffers, 4)])
    assert r.driver.needs_kick() is False
    r.device.enable_notification()
    assert r.word(r.layout.used_ring) == 0
    r.driver.add([(r.buffers, 4)])
    assert r.driver.needs_kick() is True


def test_a_broken_queue_still_says_whether_the_driver_must_be_called(rig):
    """For what was returned before."""
    r = posted(rig, 1)
    r.device.add_used(r.device.pop().head_index, 0)
    r.offer(99)
    with pytest.raises(errors.PeerViolation):
        r.device.pop()
    assert r.device.needs_notification() is True


# -- what was never made right -----------------------------------------------------------------------------------------

UNBORN = """
from vqshm.memory import Region, atomic
from vqshm.ring import AvailIter, Descriptor, DescriptorChain, DeviceQueue, DriverQueue, Walk
from vqshm.ring.chain import new_chain

new = lambda kind: kind.__new__(kind)
calls = [
    lambda: new(DeviceQueue).pop(), lambda: new(DeviceQueue).available(), lambda: new(DeviceQueue).add_used(0, 0),
    lambda: new(DeviceQueue).needs_notification(), lambda: new(DeviceQueue).enable_notification(),
    lambda: new(DeviceQueue).chain(0), lambda: list(new(DeviceQueue)),
    lambda: new(DeviceQueue).go_to_previous_position(),
    lambda: new(DriverQueue).add([(0, 1)]), lambda: new(DriverQueue).publish(), lambda: new(DriverQueue).reap(),
    lambda: new(DriverQueue).used(), lambda: new(DriverQueue).needs_kick(), lambda: new(DriverQueue).avail_idx(),
    lambda: new(AvailIter).next_head(), lambda: AvailIter(None), lambda: AvailIter(3),
    lambda: new(Region).view(0, 1), lambda: new(Region).read(0, 1), lambda: new(Region).write(0, b"1"),
    lambda: list(new(DescriptorChain)), lambda: new(DescriptorChain).reader(), lambda: new_chain(None, 0, None),
    lambda: (lambda walk: (walk.start(None, 1, 0), walk.step()))(new(Walk)), lambda: atomic.load_u64(None, 0),
    lambda: DeviceQueue(None, None), lambda: DriverQueue(None, None), lambda: DeviceQueue(),
]
raised = 0
for call in calls:
    try:
        call()
    except Exception:
        raised += 1
print("survived", raised > len(calls) - 5)  # a few questions can be answered by a queue that has nothing
"""


def test_an_object_that_was_never_initialised_does_not_crash():
    done = subprocess.run([sys.executable, "-c", UNBORN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "survived True\n"), done.stderr
