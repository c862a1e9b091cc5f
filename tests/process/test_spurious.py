"""Wake-ups without a reason: extra rings of every doorbell, signals, stops. Nothing is lost, doubled, or an error."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest
from vqshm_harness import BOTH, PATIENCE, echo_spec, wait_until

from vqshm import Device, DeviceSpec, Driver, QueueSpec, Receiver, Sender, spec
from vqshm.devices import Echo

RINGS = 100_000  # of each doorbell
COUNT = 20_000  # messages


def interruptible():
    """From now on, SIGUSR1 interrupts system calls, and a handler of Python's runs."""
    signal.signal(signal.SIGUSR1, lambda *_: None)


def ring_for_nothing(bells, wanted):
    """Ring as often as wanted, in bursts; a thread of whoever holds the doorbells of both sides."""
    while wanted > 0:
        for bell in bells:
            for _ in range(100):
                bell.signal()
        wanted -= 100
        time.sleep(0)  # lets the other thread have the interpreter


def receive(me, name):
    """Receives to the end, while a thread rings both doorbells."""
    interruptible()
    with Receiver.attach(name) as receiver:
        me.send("up")
        device = receiver._device
        ringing = threading.Thread(target=ring_for_nothing, args=([device.kicks[0], device.calls[0]], RINGS))
        ringing.start()
        got = [int(message) for message in receiver]
        ringing.join()
        me.send(got == list(range(COUNT)))
        me.send(receiver.counts)
        me.recv()


def send(me, name):
    """Sends with pauses, so that both sides sleep now and then."""
    interruptible()
    rng = random.Random(1)
    with Sender.attach(name, timeout=PATIENCE) as sender:
        me.send("up")
        for number in range(COUNT):
            sender.send(b"%d" % number)
            if rng.random() < 0.1:
                sender.flush()
        sender.flush()
        me.send(sender.counts)
        me.recv()


@BOTH
@pytest.mark.fault("C04", "B15")
def test_rings_signals_and_stops_lose_and_double_no_message(make_region, notify):
    lane = DeviceSpec("lane", spec.VQSHM_ID_LANE, (QueueSpec(64, 1 << 14),), config_bytes=0)
    region = make_region(lane, notify=notify)
    receiver = region.start(receive)
    sender = region.start(send)
    rng = random.Random(notify)
    for _ in range(300):
        actor = rng.choice([receiver, sender])
        actor.signal(signal.SIGUSR1)
        if rng.random() < 0.1:
            actor.freeze()
            actor.signal(signal.SIGCONT)
    assert sender.hear()["messages"] == COUNT
    sender.finish()
    assert receiver.hear()
    assert receiver.hear()["messages"] == COUNT


def serve(me, name):
    """An echo, while a thread rings both doorbells of its queue."""
    interruptible()
    with Device.attach(name) as device:
        me.send("up")
        ringing = threading.Thread(target=ring_for_nothing, args=([device.kicks[0], device.calls[0]], RINGS))
        ringing.start()
        device.serve(Echo())
        ringing.join()


@BOTH
@pytest.mark.fault("C04", "B15")
def test_rings_signals_and_stops_lose_and_double_no_request(make_region, notify):
    region = make_region(notify=notify)
    device = region.start(serve)
    with Driver.attach(region.name, timeout=PATIENCE) as driver:
        answers, sent = [], 0
        while len(answers) < COUNT:
            while sent < COUNT and sent - len(answers) < 40:
                driver.submit([b"%d" % sent], [8])
                sent += 1
            if not sent % 300:
                device.signal(signal.SIGUSR1)
            if not sent % 1000:
                device.freeze()
                device.signal(signal.SIGCONT)
            for request in driver.completed(PATIENCE):
                with request:
                    answers.append(int(request.output()))
        assert answers == list(range(COUNT))
        assert driver.in_flight == 0


def be_called(me, name):
    """Waits for an answer while it is called for nothing; says what that took."""
    with Driver.attach(name) as driver:
        request = driver.submit([b"x"], [8])
        driver.kick()
        me.send("up")
        before = time.process_time()
        assert list(driver.completed(PATIENCE)) == [request]
        me.send((time.process_time() - before, driver.ports[0].counts["waits"]))
        request.release()
        me.recv()


@BOTH
@pytest.mark.fault("B15")
def test_a_wake_up_for_nothing_is_counted_and_costs_what_a_wake_up_costs(make_region, start, notify):
    """A hundred of them in a second, from a device that has nothing to return."""
    region = make_region(notify=notify)
    with Device.attach(region.name) as device:
        driver = start(be_called, region.name)
        assert driver.hear() == "up"
        device.wait_driver(PATIENCE)
        chain = device.next_chain(PATIENCE)
        for _ in range(100):
            wait_until(lambda: driver.state() == "S", "it sleeps")
            device.calls[0].signal()
            time.sleep(0.01)  # the rate is what is given here, not an event that is waited for
        device.complete(chain, 0)
        device.calls[0].signal()
        seconds, waits = driver.hear()
        assert waits > 50
        assert seconds < 0.5
        driver.finish()


def kick_a_broken_queue(me, name):
    """Offers a chain that cannot be, and goes on kicking."""
    with Driver.attach(name) as driver:
        driver.memory.write(driver.plan.queues[0].layout.avail_ring + 2, b"\xff\xff")
        driver.kicks[0].signal()
        while not driver._reset_wanted:
            driver.park(driver.calls, None)
        me.send("broken")
        for _ in range(100):
            driver.kicks[0].signal()
            time.sleep(0.01)
        me.send("kicked")
        me.recv()


@BOTH
@pytest.mark.fault("A25")
def test_a_queue_that_is_kicked_after_it_broke_costs_next_to_nothing_and_its_device_can_be_stopped(
    make_region, start, notify
):
    region = make_region(echo_spec(), notify=notify)
    device = region.echo()
    driver = start(kick_a_broken_queue, region.name)
    assert driver.hear() == "broken"
    before = device.cpu_seconds()
    assert driver.hear() == "kicked"
    assert device.cpu_seconds() - before < 0.2
    region.coordinator.finish()
    assert device.end() == 0
