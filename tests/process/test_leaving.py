"""Who leaves while its process lives on, when no coordinator is there to say so: whoever waits for it is told."""

from __future__ import annotations

import asyncio

import pytest
from vqshm_harness import BOTH, PATIENCE, echo_spec, wait_until

from vqshm import Device, DeviceSpec, Driver, QueueSpec, Receiver, Sender, spec
from vqshm.errors import EndOfMessages, PeerGone
from vqshm.host.aio import AsyncDevice, AsyncDriver
from vqshm.message.aio import AsyncReceiver, AsyncSender
from vqshm.message.fan import Fanin, Fanout

ROOM = 4096
ORDERS = pytest.mark.parametrize("order", ["after the coordinator", "just before it"])


def lane(name: str = "lane") -> DeviceSpec:
    return DeviceSpec(name, spec.VQSHM_ID_LANE, (QueueSpec(4, ROOM),), config_bytes=0)


def leave(region, order, end) -> None:
    """Close an end so that nobody but itself can tell its peer."""
    if order == "after the coordinator":
        region.coordinator.kill()
        end.close()
    else:
        region.coordinator.freeze()
        end.close()  # the coordinator never reads that
        region.coordinator.kill()


def asleep(actor) -> None:
    wait_until(lambda: actor.state() == "S", f"{actor} sleeps")


def say_error(me, call, *args) -> None:
    """Say what a call without a timeout raises."""
    try:
        call(*args)
    except (PeerGone, EndOfMessages) as error:
        me.send((type(error).__name__, error.facts))
    else:
        me.send(("nothing", {}))


# -- lanes -------------------------------------------------------------------------------------------------------------


def fill(sender):
    while True:
        sender.send(bytes(ROOM // 4))


def send_on(me, name):
    with Sender.attach(name, timeout=PATIENCE) as sender:
        me.send("up")
        say_error(me, fill, sender)
        me.recv()


def send_on_in_a_loop(me, name):
    async def run():
        async with await AsyncSender.attach(name, timeout=PATIENCE) as sender:
            me.send("up")
            while True:
                await sender.send(bytes(ROOM // 4))

    say_error(me, asyncio.run, run())
    me.recv()


def fan_out(me, name):
    with Fanout.attach(name, timeout=PATIENCE) as fan:
        me.send("up")
        say_error(me, fill, fan)
        me.recv()


def flush_on(me, name):
    with Sender.attach(name, timeout=PATIENCE) as sender:
        sender.send(b"x")
        me.send("up")
        say_error(me, sender.flush)
        me.recv()


def call_on(me, name):
    with Sender.attach(name, timeout=PATIENCE) as sender:
        me.send("up")
        say_error(me, sender.call, b"question", 8)
        me.recv()


@pytest.mark.fault("D08")
@BOTH
@ORDERS
@pytest.mark.parametrize("wait", [send_on, send_on_in_a_loop, fan_out, flush_on, call_on])
def test_a_sender_that_waits_is_told_that_its_receiver_left(make_region, start, notify, order, wait):
    if (wait, notify) == (send_on_in_a_loop, "semaphore"):
        pytest.skip("event loops cannot watch semaphores")
    region = make_region(lane(), notify=notify)
    receiver = Receiver.attach(region.name)
    actor = start(wait, region.name)
    assert actor.hear() == "up"
    asleep(actor)
    leave(region, order, receiver)
    kind, facts = actor.hear()
    assert kind == "PeerGone"
    assert wait is fan_out or facts["role"] == "device"


def receive_all(receiver):
    count = 0
    try:
        while True:
            receiver.recv()
            count += 1
    except EndOfMessages as error:
        error.facts["count"] = count
        raise


def receive_on(me, name):
    with Receiver.attach(name) as receiver:
        me.send("up")
        say_error(me, receive_all, receiver)
        me.recv()


def fan_in(me, name):
    with Fanin.attach(name) as fan:
        me.send("up")
        say_error(me, receive_all, fan)
        me.recv()


def receive_on_in_a_loop(me, name):
    async def run():
        count = 0
        async with await AsyncReceiver.attach(name) as receiver:
            me.send("up")
            try:
                while True:
                    await receiver.recv()
                    count += 1
            except EndOfMessages as error:
                error.facts["count"] = count
                raise

    say_error(me, asyncio.run, run())
    me.recv()


@pytest.mark.fault("D08")
@BOTH
@ORDERS
@pytest.mark.parametrize("wait", [receive_on, receive_on_in_a_loop, fan_in])
def test_a_receiver_that_waits_gets_everything_and_is_told_that_its_sender_left(
    make_region, start, notify, order, wait
):
    if (wait, notify) == (receive_on_in_a_loop, "semaphore"):
        pytest.skip("event loops cannot watch semaphores")
    region = make_region(lane(), notify=notify)
    actor = start(wait, region.name)
    assert actor.hear() == "up"
    sender = Sender.attach(region.name, timeout=PATIENCE)
    sender.send_many([b"a", b"b", b"c"])
    sender.flush()
    asleep(actor)
    sender.send(b"the last one")
    leave(region, order, sender)
    kind, facts = actor.hear()
    assert (kind, facts["count"], facts["ended"]) == ("EndOfMessages", 4, False)


# -- chains ------------------------------------------------------------------------------------------------------------


def request_on(me, name):
    with Driver.attach(name, timeout=PATIENCE) as driver:
        me.send("up")
        say_error(me, driver.request, b"x", 8)
        me.recv()


def request_on_in_a_loop(me, name):
    async def run():
        async with await AsyncDriver.attach(name, timeout=PATIENCE) as driver:
            me.send("up")
            await driver.request(b"x", 8)

    say_error(me, asyncio.run, run())
    me.recv()


@pytest.mark.fault("D08")
@BOTH
@ORDERS
@pytest.mark.parametrize("restart", ["reset", "resume"])
@pytest.mark.parametrize("wait", [request_on, request_on_in_a_loop])
def test_a_driver_that_waits_is_told_that_its_device_left(make_region, start, notify, order, restart, wait):
    if (wait, notify) == (request_on_in_a_loop, "semaphore"):
        pytest.skip("event loops cannot watch semaphores")
    region = make_region(DeviceSpec("echo0", 0x7601, (QueueSpec(8, 4096),), restart=restart), notify=notify)
    device = Device.attach(region.name)
    actor = start(wait, region.name)
    assert actor.hear() == "up"
    device.wait_driver(PATIENCE)
    assert device.next_chain(PATIENCE) is not None
    asleep(actor)
    leave(region, order, device)
    kind, facts = actor.hear()
    assert (kind, facts["role"], facts["in_flight"]) == ("PeerGone", "device", 1)


def serve_on(me, name):
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        me.send(sum(1 for _ in device))
        me.recv()


def serve_on_in_a_loop(me, name):
    async def run():
        async with await AsyncDevice.attach(name) as device:
            me.send("up")
            me.send(len([chain async for chain in device]))

    asyncio.run(run())
    me.recv()


@pytest.mark.fault("D08")
@BOTH
@ORDERS
@pytest.mark.parametrize("wait", [serve_on, serve_on_in_a_loop])
def test_a_device_that_waits_serves_what_was_published_and_is_told_that_its_driver_left(
    make_region, start, notify, order, wait
):
    if (wait, notify) == (serve_on_in_a_loop, "semaphore"):
        pytest.skip("event loops cannot watch semaphores")
    region = make_region(echo_spec(), notify=notify)
    actor = start(wait, region.name)
    assert actor.hear() == "up"
    driver = Driver.attach(region.name, timeout=PATIENCE)
    for _ in range(3):
        driver.submit([b"x"], [8])
    driver.kick()
    asleep(actor)
    leave(region, order, driver)
    assert actor.hear() == 3


def test_who_leaves_while_the_coordinator_is_there_is_told_of_by_the_coordinator_alone(make_region):
    """A cell that somebody clears ends no session then."""
    region = make_region(echo_spec())
    region.echo()
    with Driver.attach(region.name, timeout=PATIENCE) as driver:
        driver.cells.device_pid = 0
        assert not driver.peer_gone
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
