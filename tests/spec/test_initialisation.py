"""Device status [2.1], reset [2.4], initialisation [3.1], cleanup [3.3], and what a driver process owes the rings."""

from __future__ import annotations

import threading

import pytest

from vqshm import errors, spec
from vqshm.transport.status import DeviceStatus

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
SUSPEND, NEEDS_RESET, FAILED = 16, 64, 128
STEPS = [0, 1, 3, 11, 15]
VERSION_1 = spec.mask(spec.VIRTIO_F_VERSION_1)


def bits_of(value):
    return [1 << i for i in range(8) if value >> i & 1]


# -- 2.1 and 3.1: the driver goes its way ------------------------------------------------------------------------------


@pytest.mark.spec("2.1.1-driver-1")
def test_each_finished_step_shows_in_the_status(world):
    device = world.device()
    world.driver()
    assert [*world.shown[1:], device.cells.status] == STEPS


@pytest.mark.spec("3.1.1-driver-1")
def test_the_driver_goes_the_eight_steps_in_order(world):
    world.device()
    driver = world.driver()
    assert [entry[:2] for entry in world.written] == [
        ("status", 0),
        ("status", ACKNOWLEDGE),
        ("status", ACKNOWLEDGE | DRIVER),
        ("features", driver.features),
        ("status", ACKNOWLEDGE | DRIVER | FEATURES_OK),
        ("status", ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
    ]


@pytest.mark.spec("3.1.1-driver-1")
def test_the_register_knows_no_other_way_to_a_live_device():
    ways = []

    def go(value, way):
        if value == STEPS[-1]:
            ways.append(way)
            return
        for bit in (ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK):
            status = DeviceStatus(value)
            if not value & bit:
                try:
                    status.write(value | bit)
                except errors.NegotiationError:
                    continue
                go(status.value, [*way, bit])

    go(0, [])
    assert ways == [[ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK]]
    with pytest.raises(errors.NegotiationError):  # nor does one write: FEATURES_OK must be read back first
        DeviceStatus(3).write(15)


@pytest.mark.spec("2.1.1-driver-2")
def test_the_driver_takes_no_bit_back(world):
    world.device()
    world.driver()
    assert all(after & before == before for before, after in zip(world.statuses, world.statuses[1:], strict=False))


@pytest.mark.spec("2.1.1-driver-2")
@pytest.mark.parametrize("value", [3, 11, 15, 1 | FAILED, 15 | FAILED])
def test_the_register_lets_no_bit_be_taken_back(value):
    for bit in bits_of(value):
        status = DeviceStatus(value)
        with pytest.raises(errors.NegotiationError, match="must not clear"):
            status.write(value & ~bit)
        assert status.value == value


@pytest.mark.spec("2.1.1-driver-3")
@pytest.mark.parametrize("steps", STEPS)
def test_after_failed_only_a_reset_leads_on(steps):
    for bit in (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK):
        status = DeviceStatus(steps | FAILED)
        if not steps & bit:
            with pytest.raises(errors.NegotiationError):
                status.write(status.value | bit)
        status.write(0)
        status.write(ACKNOWLEDGE)


@pytest.mark.spec("2.1.1-driver-3")
def test_a_driver_that_failed_begins_its_next_try_with_a_reset(world):
    world.device()
    with pytest.raises(errors.NegotiationError):
        world.driver(required=1 << 6)
    assert world.statuses[-1] & FAILED
    world.written.clear()
    world.driver()
    assert world.statuses == STEPS


@pytest.mark.spec("3.1.1-driver-1")
def test_the_late_answer_to_a_reset_does_not_disturb_the_next_one(world):
    device = world.device()
    driver = world.driver()
    device.wait_driver(1)
    with pytest.raises(errors.DeadlineExceeded):
        driver.reset(timeout=0.1)  # the device does not answer
    assert device.next_chain(timeout=1) is None  # now it does
    world.written.clear()
    driver.reset(timeout=5)
    assert world.statuses == [0, *STEPS]
    assert device.cells.status == 15


@pytest.mark.spec("3.1.1-driver-2")
def test_the_driver_does_not_write_to_the_configuration_space_while_it_negotiates(world, control):
    device = world.device(config=b"as the device made it")
    generation = device.config.generation
    driver = world.driver()
    assert driver.config.read(0, 21) == b"as the device made it"
    assert driver.config.generation == generation
    # There is no way to do it by the control channel either: only the device's words change the space.
    with pytest.raises(errors.ProtocolError, match="driver"):
        driver._ask({"type": "config", "offset": 0, "data": b"as the driver likes it"})
    assert device.config.read(0, 21) == b"as the device made it"


@pytest.mark.spec("3.1.1-driver-3")
@pytest.mark.parametrize("to", [11, 15])
def test_no_features_are_accepted_once_features_ok_is_set(control, to):
    side = control(offered=VERSION_1 | 1 << 5)
    side.bring_up(VERSION_1, to=to)
    with pytest.raises(errors.InvalidState):
        side.features(VERSION_1 | 1 << 5)
    assert side.cells.accepted == VERSION_1


@pytest.mark.spec("3.1.1-driver-1", "3.1.1-driver-4")
def test_a_driver_that_reads_features_ok_back_as_clear_gives_up(world, monkeypatch):
    from vqshm.host.coordination.slot import Slot

    noted = Slot.write_status

    def unwilling(slot, client, value):
        if value & FEATURES_OK and not value & FAILED:
            world.written.append(("status", value, False, []))
            client.reply({"type": "ok", "value": value & ~FEATURES_OK})
        else:
            noted(slot, client, value)

    monkeypatch.setattr(Slot, "write_status", unwilling)
    world.device()
    with pytest.raises(errors.NegotiationError):
        world.driver()
    assert world.statuses[:4] == [0, 1, 3, 11]
    assert len(world.statuses) == 5
    assert world.statuses[-1] & FAILED
    assert not world.statuses[-1] & DRIVER_OK


@pytest.mark.spec("3.1.1-driver-4")
def test_a_driver_whose_initialisation_failed_offers_nothing(world):
    device = world.device(features=1 << 5)
    driver = world.driver(required=1 << 5)
    device.close()
    world.handles.remove(device)
    world.handles.append(world.device())  # the successor lacks the required feature
    with pytest.raises(errors.NegotiationError):
        driver.reset()
    before = rings(world, driver)
    with pytest.raises(errors.VqshmError):
        driver.submit([b"too early"])
    assert rings(world, driver) == before


@pytest.mark.spec("3.1.1-driver-5")
def test_no_kick_is_sent_before_driver_ok(world):
    world.device()
    driver = world.driver()
    assert [entry[2] for entry in world.written if entry[0] == "status"] == [False] * 5
    driver.submit([b"x"])
    driver.kick()
    assert world.kicked()


@pytest.mark.spec("3.1.1-driver-5")
def test_a_driver_whose_initialisation_failed_does_not_kick(world):
    device = world.device(features=1 << 5)
    driver = world.driver(required=1 << 5)
    device.close()
    world.handles.remove(device)
    world.handles.append(world.device())
    with pytest.raises(errors.NegotiationError):
        driver.reset()
    with pytest.raises(errors.VqshmError):
        driver.kick()
    assert not world.kicked()


def rings(world, endpoint):
    return [endpoint.memory.read(address, count) for _, address, count in world.plan.layout.areas()]


# -- 2.1.2, 2.4: the device --------------------------------------------------------------------------------------------


@pytest.mark.spec("2.1.2-device-1")
@pytest.mark.parametrize("to", [0, 1, 3, 11])
def test_the_device_is_not_started_before_driver_ok(control, to):
    side = control()
    side.bring_up(to=to)
    assert "start" not in dict(side.device.events)


@pytest.mark.spec("2.1.2-device-1")
def test_the_device_neither_takes_buffers_nor_calls_before_driver_ok(world):
    device = world.device()
    world.poke_rings(b"\1")  # buffers galore, were it live
    device.kicks[0].signal()
    before = world.rings()
    with pytest.raises(errors.DeadlineExceeded):
        device.wait_driver(timeout=0.1)
    with pytest.raises(errors.InvalidState):
        device.next_chain(timeout=0)
    assert world.rings() == before
    assert not world.called()


@pytest.mark.spec("2.1.2-device-2")
@pytest.mark.parametrize("to", STEPS)
def test_a_device_in_need_of_a_reset_announces_it_if_driver_ok_is_set(control, to):
    side = control()
    side.bring_up(to=to)
    side.slot.needs_reset(side.device, "worn out", 0)
    assert side.cells.status == to | NEEDS_RESET
    assert ("needs_reset" in dict(side.driver.events)) is (to == 15)


@pytest.mark.fault("B12")
@pytest.mark.spec("2.1.2-device-2")
def test_the_driver_hears_that_its_device_needs_a_reset(world):
    device = world.device()
    driver = world.driver()
    driver.submit([b"x"])
    device.wait_driver(1)
    device.needs_reset("worn out")
    with pytest.raises(errors.DeviceNeedsReset, match="worn out"):
        list(driver.completed(timeout=5))
    assert device.cells.status == 15 | NEEDS_RESET


@pytest.mark.spec("2.4.1-device-1")
@pytest.mark.parametrize("value", [*STEPS, 15 | NEEDS_RESET, 3 | FAILED])
def test_a_reset_makes_the_status_0(value):
    status = DeviceStatus(value)
    status.write(0)
    assert status.value == 0


@pytest.mark.spec("2.4.1-device-1")
@pytest.mark.parametrize("worn_out", [False, True])
def test_a_reset_shows_as_0_as_soon_as_the_device_has_let_go(control, worn_out):
    side = control()
    side.bring_up()
    if worn_out:
        side.slot.needs_reset(side.device, "worn out", 0)
    answered = len(side.driver.replies)
    assert side.status(0) != 0
    assert side.device.events[-1][0] == "stop"
    assert len(side.driver.replies) == answered
    side.slot.stopped(side.device)
    assert side.cells.status == 0
    assert side.driver.replies[answered:] == [{"type": "ok", "value": 0}]


@pytest.mark.spec("2.4.1-device-2")
def test_after_a_reset_the_device_leaves_the_queues_alone(world):
    device = world.device()
    driver = world.driver()
    request = driver.submit([b"x"], [16])
    driver.kick()
    device.wait_driver(1)
    chain = device.next_chain(timeout=1)

    resetting = threading.Thread(target=driver._status, args=(0,))
    resetting.start()
    assert device.next_chain(timeout=5) is None
    resetting.join(5)
    assert device.cells.status == 0

    driver.calls[0].clear()
    world.poke_rings(b"\1")
    device.kicks[0].signal()
    before = world.rings()
    with pytest.raises(errors.InvalidState):
        device.complete(chain, 0)
    with pytest.raises(errors.InvalidState):
        device.next_chain(timeout=0)
    with pytest.raises(errors.DeadlineExceeded):
        device.wait_driver(timeout=0.1)
    assert world.rings() == before
    assert not world.called()
    assert not request.done


@pytest.mark.spec("3.4.2-device-1")
@pytest.mark.parametrize("value", STEPS[:-1])
def test_suspend_has_no_effect_before_the_device_is_live(value):
    status = DeviceStatus(value)
    with pytest.raises(errors.NegotiationError):
        status.write(value | SUSPEND)
    assert status.value == value


# -- 2.7: what the driver process owes the rings -----------------------------------------------------------------------


@pytest.mark.spec("2.7.10.1-driver-1")
@pytest.mark.parametrize("again", [False, True])
def test_the_driver_clears_the_rings_before_driver_ok(world, again):
    device = world.device()
    world.poke_rings(b"\xff")
    driver = world.driver()
    if again:
        driver.close()
        world.handles.remove(driver)
        device.wait_driver(1)
        assert device.next_chain(timeout=5) is None
        world.poke_rings(b"\xff")
        world.driver()
    assert world.written[-1][:2] == ("status", 15)
    assert not any(map(any, world.written[-1][3]))


@pytest.mark.spec("2.7.8.3-driver-1")
def test_the_answer_ends_where_the_device_says(world):
    device = world.device()
    driver = world.driver()
    request = driver.submit([b"x"], [8, 8])
    device.wait_driver(1)
    chain = device.next_chain(timeout=1)
    chain.writer().write_all(b"0123456789ABCDEF")
    device.complete(chain, 11)
    with next(driver.completed(timeout=5)) as returned:
        assert returned is request
        assert returned.output() == b"0123456789A"
        assert [bytes(view) for view in returned.views()] == [b"01234567", b"89A"]


@pytest.mark.spec("3.3.1-driver-2")
def test_chains_in_flight_are_taken_back_only_when_the_reset_is_done(world):
    device = world.device()
    driver = world.driver()
    request = driver.submit([b"x"], [16])
    with pytest.raises(errors.DeadlineExceeded):
        driver.reset(timeout=0.1)  # the device does not answer
    assert driver.in_flight == 1
    assert not request.done
    with pytest.raises(errors.InvalidState):
        request.release()
    assert device.cells.status == 15


@pytest.mark.spec("3.3.1-driver-2")
def test_chains_in_flight_come_back_after_the_reset(world):
    device = world.device()
    driver = world.driver()
    request = driver.submit([b"x"], [16])
    device.wait_driver(1)
    assert device.next_chain(timeout=1)
    serving = threading.Thread(target=device.next_chain)
    serving.start()
    assert driver.reset(timeout=5) == [request]
    serving.join(5)
    assert request.done
    assert driver.in_flight == 0
    assert world.statuses == [*STEPS, 0, *STEPS]
    request.release()
