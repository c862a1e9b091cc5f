"""The races name a wake-up that is lost: at once, when both sides go on, and by their places when they do not."""

from __future__ import annotations

import os
import threading

import pytest

from vqshm.bench import races
from vqshm.memory import GuestMemory, Region, atomic
from vqshm.ring import QueueConfig, SplitLayout

LAYOUT = SplitLayout.at(0x1_0000, 8)


@pytest.fixture
def bells():
    fds = [os.eventfd(0), os.eventfd(0)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def words():
    return Region(bytearray(races.WORDS))


@pytest.fixture
def memory():
    return GuestMemory([(0x1_0000, bytearray(0x1000))])


def racers(words, bells):
    kick, call = bells
    return races.Racer(words, races.DRIVER, kick, call, 1, 50), races.Racer(words, races.DEVICE, call, kick, 2, 50)


@pytest.mark.fault("C01")
@pytest.mark.parametrize("event_idx", [True, False], ids=["EVENT_IDX", "flags"])
def test_two_threads_race_and_every_round_ends(words, bells, memory, event_idx):
    config = QueueConfig(LAYOUT, event_idx=event_idx)
    driver, device = racers(words, bells)
    other = threading.Thread(target=device.serve, args=(config.device(memory), 300))
    other.start()
    driver.drive(config.driver(memory), LAYOUT.end, 300)
    other.join()
    assert driver.round == device.round == 300
    assert 0 < device.slept <= 300
    assert driver.notified <= 300
    assert races.where(words).startswith("the driver is in round 300 ")


def give_back(memory, event):
    """As a device that served the first chain, and wants to be kicked when the position `event` is passed."""
    memory.write(LAYOUT.used_ring + 4, bytes(8))
    memory.write(LAYOUT.used_ring + 2, b"\x01\x00")
    memory.write(LAYOUT.used_ring + 4 + 8 * LAYOUT.size, event.to_bytes(2, "little"))


@pytest.mark.fault("C01")
@pytest.mark.parametrize("slept", [True, False], ids=["slept", "awake"])
@pytest.mark.parametrize("asks", [True, False], ids=["asks", "does not ask"])
def test_who_slept_without_being_notified_has_lost_a_wakeup(words, bells, memory, slept, asks):
    """A device that wrote its wish too late, or saw avail.idx too early, as if there were no fence."""
    driver, _ = racers(words, bells)
    queue = QueueConfig(LAYOUT, event_idx=True).driver(memory)
    atomic.store_u64(words, races.DEVICE + 8 + 8, 1 if slept else 0)  # that it went to sleep in round 1
    give_back(memory, 0 if asks else 0x8000)
    if slept and not asks:
        with pytest.raises(races.LostWakeup, match="slept in round 1, and was not notified"):
            driver.drive(queue, LAYOUT.end, 1)
    else:
        driver.drive(queue, LAYOUT.end, 1)
        assert (driver.notified, driver.both) == (int(asks), int(asks and not slept))


def test_who_saw_the_work_before_the_other_side_asked_needed_no_notification(words, bells, memory):
    driver, _ = racers(words, bells)
    atomic.store_u64(words, races.DEVICE + 8 + 8, 1)  # it went to sleep in round 1 …
    atomic.store_u64(words, races.DEVICE + 24, 1)  # … and was woken by an older notification
    give_back(memory, 0x8000)
    driver.drive(QueueConfig(LAYOUT, event_idx=True).driver(memory), LAYOUT.end, 1)
    assert driver.notified == 0


def test_where_both_stand_can_be_read_by_a_third(words):
    atomic.store_u64(words, races.DRIVER, 7)
    atomic.store_u64(words, races.DEVICE, 8)
    atomic.store_u64(words, races.DEVICE + 8, 8)
    assert races.where(words) == "the driver is in round 7 and does not sleep, the device is in round 8 and sleeps"
