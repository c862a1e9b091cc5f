"""Notification suppression: calls [2.7.7] and kicks [2.7.10]; a call or kick is due where the ring says that it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

EVENTS = pytest.mark.parametrize("event", [0, 1, 2, 3, 0x7FFF, 0xFFFF])
POLICIES = pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])
WORDS = st.integers(0, 0xFFFF)


def passed(event, old, count):
    """Whether one of `count` entries, the first at position `old`, was written at position `event`: said one by one."""
    return any((old + i) & 0xFFFF == event for i in range(count))


# -- 2.7.7 calls: what the driver says ---------------------------------------------------------------------------------


def run_driver(rig):
    """Everything a driver does; yields after each call."""
    driver = rig.driver
    yield
    for _ in range(3):
        driver.disable_notification()
        yield
        token = driver.add([rig.buffer(16)])
        yield
        driver.needs_kick()
        yield
        driver.enable_notification()
        yield
        rig.give_back(token)
        driver.reap()
        yield
        driver.enable_notification(3)
        yield


@pytest.mark.spec("2.7.7.1-driver-1")
def test_without_event_idx_the_driver_keeps_avail_flags_at_0_or_1(bench):
    rig = bench()
    seen = {rig.avail().flags for _ in run_driver(rig)}
    assert seen == {0, 1}


@pytest.mark.spec("2.7.7.1-driver-2")
def test_with_event_idx_the_driver_keeps_avail_flags_at_0(bench):
    rig = bench(event_idx=True)
    assert {rig.avail().flags for _ in run_driver(rig)} == {0}


@pytest.mark.spec("2.7.7.1-driver-3")
@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_called_for_nothing_finds_nothing_and_goes_on(bench, event_idx):
    rig = bench(event_idx=event_idx)
    driver = rig.driver
    assert driver.reap() is None
    token = driver.add([rig.buffer(16)])
    before = rig.snapshot()
    assert [driver.reap() for _ in range(5)] == [None] * 5
    assert rig.snapshot() == before
    rig.give_back(token)
    assert driver.reap() == (token, 0)
    assert driver.reap() is None


# -- 2.7.7 calls: what the device does ---------------------------------------------------------------------------------


def give_back_through(device, rig, count=1):
    for _ in range(count):
        token = rig.driver.add([rig.buffer(16)])
        chain = device.pop()
        assert chain.head_index == token
        device.add_used(token, 0)
        assert rig.driver.reap() == (token, 0)


@pytest.mark.spec("2.7.7.2-device-1")
@POLICIES
@EVENTS
def test_without_event_idx_the_device_does_not_look_at_used_event(bench, strict, event):
    rig = bench(strict=strict)
    rig.poke_avail(event=event)
    for flags in (0, 1):
        rig.poke_avail(flags=flags)
        give_back_through(rig.device, rig)
        assert rig.device.needs_notification() is (not flags or not strict)  # the seed calls always


@pytest.mark.spec("2.7.7.2-device-2")
@POLICIES
@pytest.mark.parametrize("count", [1, 3])
def test_without_event_idx_the_device_calls_if_avail_flags_is_0(bench, strict, count):
    rig = bench(strict=strict)
    for _ in range(3):
        give_back_through(rig.device, rig, count)
        assert rig.device.needs_notification()


@pytest.mark.spec("2.7.7.2-device-3")
@POLICIES
@EVENTS
def test_with_event_idx_the_device_does_not_look_at_avail_flags(bench, strict, event):
    answers = []
    for flags in (0, 1):
        rig = bench(event_idx=True, strict=strict)
        rig.poke_avail(flags=flags, event=event)
        for _ in range(4):
            give_back_through(rig.device, rig)
            answers.append(rig.device.needs_notification())
    assert answers[:4] == answers[4:] == [position == event for position in range(4)]


@pytest.mark.spec("2.7.7.2-device-4")
@given(position=WORDS, ahead=st.integers(-2, 9), counts=st.lists(st.integers(0, 4), max_size=5), strict=st.booleans())
def test_with_event_idx_the_device_calls_if_used_event_was_passed(bench, position, ahead, counts, strict):
    rig = bench(event_idx=True, strict=strict)
    rig.poke_avail(idx=position)
    event = (position + ahead) & 0xFFFF
    rig.poke_avail(event=event)
    device = rig.device
    device.seek(position, position)
    rig.poke_desc(0, *rig.buffer(16))
    for count in counts:
        for _ in range(count):
            rig.offer(0)
            device.add_used(device.pop().head_index, 0)
        assert device.needs_notification() is passed(event, position, count)
        position = (position + count) & 0xFFFF


# -- 2.7.10 kicks: what the driver does --------------------------------------------------------------------------------


@pytest.mark.spec("2.7.10.1-driver-2")
@EVENTS
def test_without_event_idx_the_driver_does_not_look_at_avail_event(bench, event):
    rig = bench()
    rig.poke_used(event=event)
    for flags in (0, 1):
        rig.poke_used(flags=flags)
        rig.driver.add([rig.buffer(16)])
        assert rig.driver.needs_kick() is not bool(flags)


@pytest.mark.spec("2.7.10.1-driver-3")
@pytest.mark.parametrize("count", [1, 3])
def test_without_event_idx_the_driver_kicks_if_used_flags_is_0(bench, count):
    rig = bench(16)
    for _ in range(4):
        for _ in range(count):
            rig.driver.add([rig.buffer(16)])
        assert rig.driver.needs_kick()


@pytest.mark.spec("2.7.10.1-driver-4")
@EVENTS
def test_with_event_idx_the_driver_does_not_look_at_used_flags(bench, event):
    answers = []
    for flags in (0, 1):
        rig = bench(event_idx=True)
        rig.poke_used(flags=flags, event=event)
        for _ in range(4):
            rig.driver.add([rig.buffer(16)])
            answers.append(rig.driver.needs_kick())
    assert answers[:4] == answers[4:] == [position == event for position in range(4)]


@pytest.mark.spec("2.7.10.1-driver-5")
@given(event=st.integers(-2, 30), counts=st.lists(st.integers(0, 4), max_size=6), batch=st.booleans())
def test_with_event_idx_the_driver_kicks_if_avail_event_was_passed(bench, event, counts, batch):
    rig = bench(event_idx=True)
    rig.poke_used(event=event & 0xFFFF)
    buffer = rig.buffer(16)
    position = 0
    for count in counts:
        tokens = [rig.driver.add([buffer], publish=not batch) for _ in range(count)]
        rig.driver.publish()
        assert rig.driver.needs_kick() is passed(event & 0xFFFF, position, count)
        position += count
        for token in tokens:
            rig.give_back(token)
            rig.driver.reap()


# -- 2.7.10 kicks: what the device says --------------------------------------------------------------------------------


def run_device(rig):
    """Everything a device does; yields after each call."""
    device = rig.device
    yield
    for _ in range(3):
        device.disable_notification()
        yield
        rig.driver.add([rig.buffer(16)])
        rig.driver.add([rig.buffer(16)])
        device.pop()
        device.go_to_previous_position()
        yield
        chain = device.pop()
        yield
        device.enable_notification()
        yield
        device.add_used(chain.head_index, 0)
        yield
        device.needs_notification()
        yield


@pytest.mark.spec("2.7.10.2-device-1")
@POLICIES
def test_without_event_idx_the_device_keeps_used_flags_at_0_or_1(bench, strict):
    rig = bench(strict=strict)
    assert {rig.used().flags for _ in run_device(rig)} == {0, 1}


@pytest.mark.spec("2.7.10.2-device-2")
@POLICIES
def test_with_event_idx_the_device_keeps_used_flags_at_0(bench, strict):
    rig = bench(event_idx=True, strict=strict)
    assert {rig.used().flags for _ in run_device(rig)} == {0}


@pytest.mark.spec("2.7.10.2-device-3")
@POLICIES
@pytest.mark.parametrize("event_idx", [False, True])
def test_a_device_kicked_for_nothing_finds_nothing_and_goes_on(bench, strict, event_idx):
    rig = bench(strict=strict, event_idx=event_idx)
    device = rig.device
    before = rig.snapshot()
    assert [device.pop() for _ in range(5)] == [None] * 5
    assert rig.snapshot() == before
    token = rig.driver.add([rig.buffer(16)])
    assert device.pop().head_index == token
    assert device.pop() is None
