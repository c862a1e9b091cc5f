"""A device serves every queue and every driver in turn, and nothing it is given makes it hang or let go of a chain."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os

import pytest
from vqshm_harness import BOTH, ECHO_ID, PATIENCE, descriptors, echo_spec

from vqshm import Device, Driver, spec
from vqshm.devices.echo import Echo
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    InvalidState,
    InvalidUsedLength,
    NegotiationError,
    RuleError,
    UsedIdNotInFlight,
)
from vqshm.notify import Adaptive, Block, Spin, Yield

STRATEGIES = pytest.mark.parametrize("strategy", [Adaptive, Block, Spin, Yield])


@pytest.fixture
def pair(region):
    with Device.attach(region.name) as device, Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        yield driver, device


# -- life --------------------------------------------------------------------------------------------------------------


def test_a_device_waits_for_its_driver(region):
    with Device.attach(region.name) as device:
        assert not device.running
        with pytest.raises(DeadlineExceeded, match="no driver attached"):
            device.wait_driver(0.01)
        with pytest.raises(InvalidState, match="wait_driver"):
            device.next_chain(0)
        with Driver.attach(region.name) as driver:
            assert device.wait_driver(PATIENCE) == driver.features
            assert device.wait_driver(0) == driver.features


@BOTH
def test_chains_come_until_the_driver_leaves_and_then_for_the_next(make_region, notify):
    region = make_region(notify=notify)
    with Device.attach(region.name) as device:
        for number in range(3):
            with Driver.attach(region.name) as driver:
                device.wait_driver(PATIENCE)
                for _ in range(number + 2):
                    driver.submit([b"x"])
            seen = []
            for chain in device:
                seen.append(chain.reader().read())
                device.complete(chain)
            assert seen == [b"x"] * (number + 2)  # all that was published before it left
            assert not device.running


def test_a_reset_ends_the_chains_of_that_session(pair):
    driver, device = pair
    driver.submit([b"old"])
    chain = device.next_chain(PATIENCE)
    with pytest.raises(DeadlineExceeded):
        driver.reset(timeout=0)
    assert device.next_chain(PATIENCE) is None
    with pytest.raises(InvalidState, match="has left"):
        device.complete(chain)
    driver.reset(PATIENCE)
    device.wait_driver(PATIENCE)
    with pytest.raises(InvalidState, match="has left"):
        device.complete(chain)  # nor into the next session


def test_a_driver_that_goes_while_it_is_waited_for_is_noticed(pair):
    driver, device = pair
    driver.close()
    assert device.next_chain(PATIENCE) is None
    assert not device.running


@STRATEGIES
def test_every_way_of_waiting_knows_its_deadline(region, strategy):
    with Device.attach(region.name, strategy=strategy()) as device, Driver.attach(region.name):
        device.wait_driver(PATIENCE)
        for timeout in (0, 0.02):
            with pytest.raises(DeadlineExceeded, match=rf"driver: process {os.getpid()}"):
                device.next_chain(timeout)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_deadline_in_the_past_is_refused(pair, timeout):
    _, device = pair
    for call in (device.next_chain, device.wait_driver):
        with pytest.raises(ValueError, match="timeout"):
            call(timeout)


def test_a_closing_region_ends_a_waiting_and_a_serving_device(make_region):
    region = make_region(echo_spec("a"), echo_spec("b"))
    with Device.attach(region.name, "a") as idle, Device.attach(region.name, "b") as busy:
        with Driver.attach(region.name, "b") as driver:
            busy.wait_driver(PATIENCE)
            driver.submit([b"last"])
            region.coordinator.finish()
            with pytest.raises(InvalidState, match="closing"):
                idle.wait_driver(PATIENCE)
            chain = busy.next_chain(PATIENCE)
            busy.complete(chain)
            assert busy.next_chain(PATIENCE) is None
            assert [request.done for request in driver.completed(PATIENCE)] == [True]
        with pytest.raises(CoordinatorGone):
            idle.update_config(0, b"x")


# -- several queues ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("G06")
def test_queues_are_served_in_turn_however_full_one_is(make_region):
    region = make_region(echo_spec(queues=3))
    with Device.attach(region.name) as device, Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        for queue, count in enumerate((40, 5, 5)):
            for _ in range(count):
                driver.submit([b"%d" % queue], queue=queue)
        order = []
        while (chain := device.pop()) is not None:
            order.append(int(chain.reader().read()))
            device.complete(chain)
        assert order == [0, 1, 2] * 5 + [0] * 35


@pytest.mark.fault("G06")
def test_sixty_four_queues_are_served_in_turn(make_region):
    """However many are full: between two chains of one queue, each of the others has its turn."""
    queues = 64
    region = make_region(echo_spec(queues=queues, size=16, buffers=4096))
    with Device.attach(region.name) as device, Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        for queue in range(queues):
            for _ in range(10):
                driver.submit([b"%d" % queue], queue=queue)
        order = []
        while (chain := device.pop()) is not None:
            order.append(int(chain.reader().read()))
            device.complete(chain)
        assert order == list(range(queues)) * 10


def test_chains_may_be_returned_in_any_order(pair):
    driver, device = pair
    requests = [driver.submit([b"%d" % number], [8]) for number in range(10)]
    driver.kick()
    chains = [device.next_chain(PATIENCE) for _ in requests]
    for chain in [*chains[::2], *chains[::-2]]:
        device.complete(chain, chain.writer().write(chain.reader().read()))
    order = list(itertools.chain(range(0, 10, 2), range(9, 0, -2)))
    assert [int(request.output()) for request in driver.completed(PATIENCE)] == order
    assert [int(request.output()) for request in requests] == list(range(10))


# -- returning ---------------------------------------------------------------------------------------------------------


def test_a_chain_is_returned_once_and_with_no_more_than_it_holds(pair):
    driver, device = pair
    driver.submit([b"x"], [4])
    chain = device.next_chain(PATIENCE)
    for impossible in (5, 1 << 31, 1 << 32, 1 << 70, -1):
        with pytest.raises((InvalidUsedLength, OverflowError)):
            device.complete(chain, impossible)
    for nonsense in ("4", None, 1.5):
        with pytest.raises(TypeError):
            device.complete(chain, nonsense)
    device.complete(chain, 4)
    with pytest.raises(UsedIdNotInFlight):
        device.complete(chain, 4)
    assert [request.written for request in driver.completed(PATIENCE)] == [4]


class Broken(Echo):
    """A handler that fails in a way of its own for each chain."""

    returns = {b"none": None, b"negative": -1, b"too much": 65, b"float": 1.5, b"text": "x", b"huge": 1 << 100}  # noqa: RUF012

    def handle(self, chain):
        way = chain.reader().read()
        if way == b"raise":
            raise OSError("broken")
        if way == b"late":
            chain.writer().write(b"partial")
            raise ValueError("after it has written")
        return self.returns[way] if way in self.returns else super().handle(chain)


def broken(me, name):
    logging.disable()
    with Device.attach(name) as device:
        me.send("up")
        device.serve(Broken())


@pytest.mark.fault("D20")
@BOTH
@pytest.mark.fault("D20")
def test_a_handler_that_fails_returns_its_chain_empty_and_goes_on(make_region, notify):
    region = make_region(notify=notify)
    region.start(broken)
    with Driver.attach(region.name) as driver:
        for _ in range(30):  # more than fit at a time: no chain stays behind
            for way in (b"raise", b"late", *Broken.returns):
                assert driver.request(way, 64, timeout=PATIENCE) == b""
            assert driver.request(b"well", 64, timeout=PATIENCE) == b"well"


def test_serving_a_device_of_another_type_is_refused(region):
    handler = Echo()
    handler.device_id = ECHO_ID + 1
    with Device.attach(region.name) as device, pytest.raises(RuleError, match="device type"):
        device.serve(handler)


def test_the_handler_is_told_what_each_driver_accepted(region, start):
    told = region.start(attentive)
    for features in (0b10, 0):
        with Driver.attach(region.name, features=features) as driver:
            assert told.hear() == driver.features
            assert driver.features & 0b11 == features


def attentive(me, name):
    handler = Echo()
    handler.features_ok = me.send
    with Device.attach(name, features=0b11) as device:
        me.send("up")
        device.serve(handler)


@pytest.mark.fault("D19", "D20")
def test_an_interruption_of_a_handler_ends_the_device_and_leaves_nothing(region):
    actor = region.start(interrupted)
    with Driver.attach(region.name) as driver, pytest.raises(ConnectionError):
        driver.request(b"x", timeout=PATIENCE)
    assert actor.end() == 0


def interrupted(me, name):
    class Handler(Echo):
        def handle(self, chain):
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), Device.attach(name) as device:
        me.send("up")
        device.serve(Handler())


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "error"),
    [
        ({"features": -1}, ValueError),
        ({"features": 1 << 64}, ValueError),
        ({"features": spec.mask(spec.VIRTIO_F_RING_PACKED)}, NegotiationError),
        ({"features": "1"}, TypeError),
        ({"features": None}, TypeError),
        ({"config": bytes(257)}, RuleError),
        ({"config": bytes(4097)}, ValueError),
        ({"config": bytes(1 << 20)}, ValueError),
        ({"config": 5}, TypeError),
        ({"config": "text"}, TypeError),
        ({"config": None}, TypeError),
        ({"timeout": -1}, ValueError),
    ],
)
def test_an_offer_that_cannot_be_takes_no_role(region, offer, error):
    before = descriptors()
    with pytest.raises(error):
        Device.attach(region.name, **offer)
    assert descriptors() == before
    Device.attach(region.name).close()


@pytest.mark.parametrize(
    ("offset", "data", "error"),
    [
        (-1, b"x", ValueError),
        (256, b"x", ValueError),
        (250, b"1234567", ValueError),
        (1 << 40, b"x", ValueError),
        (0, bytes(257), ValueError),
        (0, bytes(1 << 20), ValueError),
        (0, 5, TypeError),
        (0, "text", TypeError),
        ("0", b"x", TypeError),
    ],
)
def test_a_configuration_outside_the_space_is_refused(region, offset, data, error):
    with Device.attach(region.name, config=b"as it was") as device:
        with pytest.raises(error):
            device.update_config(offset, data)
        assert device.config.read(0, 9) == b"as it was"
        assert device.config.generation % 2 == 0
        device.update_config(256, b"")
        device.update_config(0, memoryview(b"as it is "))
        assert device.config.read(0, 9) == b"as it is "


# -- the end -----------------------------------------------------------------------------------------------------------


@BOTH
def test_closing_twice_is_closing_once(make_region, notify):
    region = make_region(notify=notify)
    before = descriptors()
    device = Device.attach(region.name)
    device.close()
    device.close()
    for call in (device.wait_driver, device.next_chain, device.pop):
        with pytest.raises(InvalidState, match="closed"):
            call()
    del device, call
    assert descriptors() == before


def test_a_closed_device_returns_nothing_any_more(region):
    """The driver may have given the buffers to another device by now."""
    device = Device.attach(region.name)
    with Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        driver.submit([b"x"], [4])
        chain = device.next_chain(PATIENCE)
        device.close()
        with pytest.raises(InvalidState, match="closed"):
            device.complete(chain, 0)
        assert driver.ports[0].queue.used_idx() == 0


def test_closing_with_chains_and_views_out_raises_nothing(region):
    device = Device.attach(region.name)
    with Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        driver.submit([b"still here"], [4])
        chain = device.next_chain(PATIENCE)
        view = next(iter(chain.reader().views()))
        device.close()
    assert bytes(view) == b"still here"


def test_events_that_came_with_an_answer_are_not_slept_over(pair):
    """The driver's reset arrives while the device waits for the answer to a question of its own."""
    driver, device = pair
    with pytest.raises(DeadlineExceeded):
        driver.reset(timeout=0)
    device.update_config(0, b"x")  # its answer comes behind the news of the reset
    assert device.next_chain(PATIENCE) is None
    driver.reset(PATIENCE)
