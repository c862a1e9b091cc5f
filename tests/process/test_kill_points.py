"""SIGKILL in front of every single store that a device or a driver makes into a ring or an in-flight area.

The process's windows over those areas are replaced (`become_mortal`). So the points are the same on both cores, and
there are no others: between two stores nobody else sees a difference.
"""

from __future__ import annotations

import os
import signal

import pytest
from vqshm_harness import ECHO_ID, PATIENCE, become_mortal, heard

from vqshm import Device, Driver
from vqshm.errors import DeadlineExceeded
from vqshm.transport import DeviceSpec, QueueSpec

MESSAGES = 6
POINTS = 200  # more than there are


def spec():
    return DeviceSpec("echo0", ECHO_ID, (QueueSpec(8, 1 << 16),), restart="resume")


# -- the device --------------------------------------------------------------------------------------------------------


def mortal_device(me, name, left, depth):
    """Echo, `depth` chains at a time, the youngest first; say what was handled, and whether that was flagged."""
    become_mortal().left = left
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        while True:
            held = []
            while not held or (len(held) < depth and device.ports[0].has_work):
                chain = device.next_chain()
                if chain is None:
                    return
                message = chain.reader().read()
                me.send((message, chain.replayed))
                held.append((chain, chain.writer().write(message)))
            for chain, written in reversed(held):
                device.complete(chain, written)


@pytest.mark.long
@pytest.mark.fault("D01", "D02")
@pytest.mark.parametrize("depth", [1, 3], ids=["in order", "out of order"])
def test_a_device_may_be_killed_in_front_of_any_of_its_stores(make_region, depth):
    region = make_region(spec())
    for point in range(POINTS):
        first = region.start(mortal_device, point, depth)
        with Driver.attach(region.name, timeout=PATIENCE) as driver:
            pending = {n: driver.submit([b"%d" % n], [8]) for n in range(MESSAGES)}
            driver.kick()
            second = take_all(driver, pending, region, depth)
            assert driver.in_flight == 0
        if second is None:
            assert point > 50  # stores that a life without death takes: all points were tried
            return
        assert second.end() == 0
        check([heard(first), heard(second)])
        region.actors.clear()
    pytest.fail(f"a device makes more than {POINTS} stores")


def take_all(driver, pending, region, depth):
    """Take every answer, once; the successor, if there had to be one."""
    second = None
    while pending:
        try:
            for request in driver.completed(0.05):
                with request:
                    number = int(request.output())
                    assert pending.pop(number) is request
        except DeadlineExceeded:
            if driver.cells.orphaned:
                assert second is None
                second = region.start(mortal_device, 1 << 60, depth)
    if second is None and driver.cells.orphaned:  # it died behind the last one
        second = region.start(mortal_device, 1 << 60, depth)
    return second


def check(lives):
    """At least once each; more than once only flagged; what is flagged came first in a life, in order."""
    seen = set()
    for said in lives:
        flags = [again for _, again in said]
        assert flags == sorted(flags, reverse=True)
        replayed = [message for message, again in said if again]
        assert replayed == sorted(replayed)
        for message, again in said:
            assert again or message not in seen
            seen.add(message)
    assert seen == {b"%d" % n for n in range(MESSAGES)}


# -- the driver --------------------------------------------------------------------------------------------------------


def mortal_driver(me, name, left):
    """Offer messages one by one and kick for each; `left` counts from the first one."""
    mortality = become_mortal()
    with Driver.attach(name) as driver:
        me.send("up")
        mortality.left = left
        for number in range(MESSAGES):
            driver.submit([b"%d" % number * 100], [8])
            driver.kick()
        me.send("done")
        me.recv()


@pytest.mark.long
@pytest.mark.fault("D06", "D07")
@pytest.mark.parametrize("restart", ["reset", "resume"])
def test_a_driver_may_be_killed_in_front_of_any_of_its_stores(make_region, restart):
    region = make_region(DeviceSpec("echo0", ECHO_ID, (QueueSpec(8, 1 << 16),), restart=restart))
    published = []
    with Device.attach(region.name) as device:
        for point in range(POINTS):
            driver = region.start(mortal_driver, point)
            device.wait_driver(PATIENCE)
            if driver.connection.poll(PATIENCE) and heard(driver) == ["done"]:
                driver.kill()
                break
            taken = []
            while (chain := device.next_chain(PATIENCE)) is not None:
                assert not chain.replayed
                taken.append(chain.reader().read())
                device.complete(chain, 0)
            assert not device.running  # it was told, and has let go
            assert taken == [b"%d" % number * 100 for number in range(len(taken))]  # whole, in order, none torn
            published.append(len(taken))
        else:
            pytest.fail(f"a driver makes more than {POINTS} stores")
        assert published == sorted(published)
        assert set(published) == set(range(MESSAGES + 1)) - {MESSAGES} or set(published) == set(range(MESSAGES + 1))
        while device.next_chain(PATIENCE) is not None:
            pass
    region.echo()
    with Driver.attach(region.name, timeout=PATIENCE) as successor:  # a session of its own, all buffers free
        assert successor.request(b"next", 8, timeout=PATIENCE) == b"next"


@pytest.mark.fault("D06")
def test_a_driver_killed_between_publishing_and_the_kick_has_its_message_served(make_region):
    region = make_region(spec())
    with Device.attach(region.name) as device:
        driver = region.start(silent_driver)
        device.wait_driver(PATIENCE)
        assert driver.end() == -signal.SIGKILL
        chain = device.next_chain(PATIENCE)  # nobody rang for it; the death did
        assert chain.reader().read() == b"published"
        device.complete(chain, 0)
        assert device.next_chain(PATIENCE) is None
        assert not device.running


def silent_driver(me, name):
    with Driver.attach(name) as driver:
        me.send("up")
        driver.submit([b"published"], [8])
        os.kill(os.getpid(), signal.SIGKILL)
