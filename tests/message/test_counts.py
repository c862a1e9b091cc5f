"""What `vqshm stat` shows of a lane are the counts of the session, also where one receiver follows another."""

from __future__ import annotations

import contextlib

import pytest
from vqshm_harness import ECHO_ID, PATIENCE

from vqshm import Device, DeviceSpec, Driver, QueueSpec, Receiver, Sender
from vqshm.view.snapshot import take

MOST = (1 << 64) - 1


class Trouble(Exception):
    """What a program does not expect."""


def shown(name):
    (queue,) = take(name).queues
    return queue.driver, queue.device


def cells_of(sender):
    return sender._driver.manifest.queue(0).device


def test_a_receiver_that_resumes_counts_on_exactly_where_the_dead_one_stood(make_channel):
    """As one does that was killed: it had not shown what it took since it slept last."""
    name = make_channel(restart="resume").name
    with contextlib.suppress(Trouble), Receiver.attach(name) as receiver:
        sender = Sender.attach(name)
        for _ in range(7_000):  # more than a position tells apart
            sender.send_many([b"x"] * 10)
            for _ in range(10):
                receiver.recv(PATIENCE)
        raise Trouble
    cells = cells_of(sender)
    assert cells.used == 69_999
    cells.used, cells.taken = 69_999 - 4095, 3
    with sender, Receiver.attach(name) as receiver:
        assert receiver.recv(PATIENCE) == b"x"
        assert receiver.replayed
        assert (shown(name)[1]["used"], shown(name)[1]["taken"]) == (69_999, 70_000)
        assert receiver.counts["messages"] == 1  # its own
        sender.send(b"y")
        receiver.recv(PATIENCE)
        receiver.done()
        receiver.show_counts()
        sender.show_counts()
        driver, device = shown(name)
        assert (device["used"], device["taken"]) == (70_001, 70_001)
        assert device["bytes_in"] == 70_002  # one of them twice
        assert driver["added"] == 70_001


def test_a_new_session_counts_from_nothing_on_both_sides(make_channel):
    name = make_channel().name
    with Receiver.attach(name) as receiver:
        for count in (5, 3):
            with Sender.attach(name) as sender:
                sender.send_many([b"x"] * count)
            assert len(list(receiver)) == count
            driver, device = shown(name)
            assert (driver["added"], device["taken"], device["used"], device["bytes_in"]) == (count,) * 4
        assert receiver.counts["messages"] == 8


@pytest.mark.fault("D01")
def test_whatever_a_peer_wrote_there_the_next_receiver_counts_on(make_channel):
    name = make_channel(restart="resume").name
    with Receiver.attach(name), Sender.attach(name) as sender:
        sender.send_many([b"x"] * 3)
        cells, names = cells_of(sender), list(cells_of(sender).snapshot())
    for word in names:
        setattr(cells, word, MOST)
    with Receiver.attach(name) as receiver:
        assert [receiver.recv(PATIENCE) for _ in range(3)] == [b"x"] * 3
        receiver.show_counts()
        receiver.done()
        receiver.show_counts()
    assert shown(name)[1]["undone"] == 0


@pytest.mark.fault("D01")
def test_and_so_does_the_next_device(make_region):
    region = make_region(DeviceSpec("echo0", ECHO_ID, (QueueSpec(8, 4096),), restart="resume"))
    with Device.attach(region.name) as device:
        driver = Driver.attach(region.name)
        requests = [driver.submit([b"x"], [8]) for _ in range(3)]
        device.wait_driver(PATIENCE)
        device.complete(device.next_chain(PATIENCE), 0)
        device.next_chain(PATIENCE)
        cells = driver.manifest.queue(0).device
    assert (cells.taken, cells.used) == (2, 1)
    cells.taken = cells.used = 0  # it had not come to showing that
    with driver:
        with Device.attach(region.name) as device:
            device.wait_driver(PATIENCE)
            assert (cells.taken, cells.used) == (2, 1)
        for word in cells.snapshot():
            setattr(cells, word, MOST)
        with Device.attach(region.name) as device:
            device.wait_driver(PATIENCE)
            for _ in range(2):
                device.complete(device.next_chain(PATIENCE), 0)
        while requests:
            for request in driver.completed(PATIENCE):
                requests.remove(request)
                request.release()
