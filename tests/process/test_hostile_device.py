"""A device that writes what it likes into the used ring is named, its queue stops, and the driver's others go on."""

from __future__ import annotations

import struct

import pytest
from vqshm_harness import BOTH, PATIENCE, echo_spec

from vqshm import Device, Driver
from vqshm.errors import (
    DeadlineExceeded,
    InvalidUsedId,
    InvalidUsedLength,
    InvalidUsedRingIndex,
    PeerViolation,
    QueueBroken,
    UsedIdNotInFlight,
)


def put(device, offset: int, data: bytes) -> None:
    """Write into the used ring of queue 0: flags 0, idx 2, elements from 4."""
    device.memory.write(device.plan.queues[0].layout.used_ring + offset, data)


def element(device, position: int, number: int, written: int) -> None:
    put(device, 4 + 8 * (position % 64), struct.pack("<II", number, written))


def idx(device, value: int) -> None:
    put(device, 2, struct.pack("<H", value & 0xFFFF))


def id_out_of_range(device):
    element(device, 0, 64, 0)
    idx(device, 1)


def id_that_is_huge(device):
    element(device, 0, 0xFFFF_FFFF, 0)
    idx(device, 1)


def id_that_was_not_offered(device):
    element(device, 0, 63, 0)
    idx(device, 1)


def the_same_id_twice(device):
    element(device, 0, 0, 0)
    element(device, 1, 0, 0)
    idx(device, 2)


def more_bytes_than_there_is_room_for(device):
    element(device, 0, 0, 9)
    idx(device, 1)


def far_more_bytes_than_there_is_room_for(device):
    element(device, 0, 0, 0xFFFF_FFFF)
    idx(device, 1)


def idx_beyond_what_is_in_flight(device):
    idx(device, 4)


def idx_far_beyond(device):
    idx(device, 0x8000)


def idx_one_back(device):
    idx(device, -1)


ATTACKS = {
    id_out_of_range: (InvalidUsedId, "B01"),
    id_that_is_huge: (InvalidUsedId, "B01"),
    id_that_was_not_offered: (UsedIdNotInFlight, "B02"),
    the_same_id_twice: (UsedIdNotInFlight, "B04"),
    more_bytes_than_there_is_room_for: (InvalidUsedLength, "A30"),
    far_more_bytes_than_there_is_room_for: (InvalidUsedLength, "A30"),
    idx_beyond_what_is_in_flight: (InvalidUsedRingIndex, "B08"),
    idx_far_beyond: (InvalidUsedRingIndex, "B08"),
    idx_one_back: (InvalidUsedRingIndex, "A17"),
}


def misbehave(me, name, attack):
    """Waits for three chains in queue 0, attacks, and serves queue 1 as it should; after a reset all of them."""
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        seen = 0
        for chain in device:
            if chain.queue is device.ports[1].queue:
                device.complete(chain, chain.writer().write(chain.reader().read()))
                continue
            seen += 1
            if seen == 3:
                globals()[attack](device)
                device.calls[0].signal()
        device.wait_driver()
        for chain in device:
            device.complete(chain, chain.writer().write(chain.reader().read()))


@BOTH
@pytest.mark.parametrize(
    ("attack", "violation"),
    [
        pytest.param(a.__name__, error, marks=pytest.mark.fault(row), id=a.__name__)
        for a, (error, row) in ATTACKS.items()
    ],
)
def test_a_false_used_element_is_named_and_the_other_queue_goes_on(make_region, notify, attack, violation):
    region = make_region(echo_spec(queues=2), notify=notify)
    device = region.start(misbehave, attack)
    with Driver.attach(region.name) as driver:
        free = driver.ports[0].pool.free
        requests = [driver.submit([b"x"], [8]) for _ in range(3)]
        driver.kick()
        with pytest.raises(violation, match="echo0 queue 0") as caught:
            list(driver.completed(PATIENCE))
        assert isinstance(caught.value, PeerViolation)
        for _ in range(2):
            with pytest.raises(QueueBroken):
                driver.submit([b"x"])
            with pytest.raises(QueueBroken):
                list(driver.completed())
        numbers = [b"%d" % number for number in range(100)]
        assert [driver.request(number, 64, queue=1, timeout=PATIENCE) for number in numbers] == numbers
        lost = driver.reset(PATIENCE)
        assert set(lost) <= set(requests)
        for request in requests:
            request.release()
        assert driver.ports[0].pool.free == free
        assert driver.request(b"healed", 64, timeout=PATIENCE) == b"healed"
    device.close()


@pytest.mark.fault("B15")
@BOTH
def test_a_storm_of_calls_without_work_is_waited_through(make_region, notify):
    region = make_region(notify=notify)
    storm = region.start(storming)
    with Driver.attach(region.name) as driver:
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"calm"
        with pytest.raises(DeadlineExceeded):
            driver.request(b"y", 8, timeout=0.05)
    storm.close()


def storming(me, name):
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        chain = device.next_chain()
        for _ in range(1000):
            device.calls[0].signal()
        device.complete(chain, chain.writer().write(b"calm"))
        while True:
            device.calls[0].signal()
