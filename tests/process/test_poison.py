"""What kills whoever handles it, by SIGKILL, is given up after so many times, and nothing else is."""

from __future__ import annotations

import os
import signal

import pytest
from vqshm_harness import BOTH, ECHO_ID, PATIENCE, heard

from vqshm import Device, DeviceSpec, Driver, QueueSpec, Receiver, Sender, spec
from vqshm.errors import RequestLost
from vqshm.view.snapshot import take

pytestmark = pytest.mark.fault("D01")

LIMIT = 3
POISON = b"poison"


def lane():
    queue = QueueSpec(16, 1 << 16)
    return DeviceSpec("lane", spec.VQSHM_ID_LANE, (queue,), config_bytes=0, restart="resume", max_attempts=LIMIT)


def answer(me, view, attempts):
    """Say what came; and die of poison."""
    me.send((bytes(view), attempts))
    if view == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return b"" if view == b"shy" else bytes(view).upper()


def answering(me, name):
    with Receiver.attach(name, timeout=PATIENCE) as receiver:
        me.send("up")
        receiver.serve(lambda view: answer(me, view, receiver.attempts))


def receiving(me, name):
    with Receiver.attach(name, timeout=PATIENCE) as receiver:
        me.send("up")
        while True:
            for message in receiver.recv_many(16):
                answer(me, message, receiver.attempts)


class Echo:
    device_id, features, config = ECHO_ID, 0, b""

    def __init__(self, me):
        self.me = me

    def handle(self, chain):
        reply = answer(self.me, chain.reader().read(), chain.attempts)
        return chain.writer().write(reply)


def handling(me, name):
    with Device.attach(name) as device:
        me.send("up")
        device.serve(Echo(me))


@pytest.mark.fault("D02")
@BOTH
def test_a_call_that_kills_ends_with_an_error_and_the_others_are_answered(make_region, notify):
    region = make_region(lane(), notify=notify)
    first = region.start(answering)
    with Sender.attach(region.name, timeout=PATIENCE) as sender:
        questions = [b"good", b"shy", POISON, b"", b"fine"]
        calls = [sender.start_call(question, 16) for question in questions]
        assert first.end() == -signal.SIGKILL
        for _ in range(LIMIT - 1):
            assert region.start(answering).end() == -signal.SIGKILL
        region.start(answering)
        assert [calls[number].answer(PATIENCE) for number in (0, 1, 3, 4)] == [b"GOOD", b"", b"", b"FINE"]
        with pytest.raises(RequestLost, match="given up"):
            calls[2].answer(PATIENCE)
        assert sender.counts["undone"] == 1
        assert sender.call(b"shy", 16, PATIENCE) == b""  # on the same descriptors by and by: it is no longer said there
        for _ in range(20):
            assert sender.call(b"shy", 16, PATIENCE) == b""
        assert sender._outlet.arena.out == 0
        (queue,) = take(region.name).queues
        assert queue.device["undone"] == 1


@BOTH
def test_messages_that_kill_are_given_up_and_each_of_the_others_is_received(make_region, notify):
    region = make_region(lane(), notify=notify)
    first = region.start(receiving)
    with Sender.attach(region.name, timeout=PATIENCE) as sender:
        sender.send_many([b"0", POISON, b"1", POISON, b"2", b"3"])
        said = []
        for life in range(5):
            dead = region.start(receiving) if life else first
            assert dead.end() == -signal.SIGKILL
            said.append(heard(dead))
        assert said == [
            [(b"0", 1), (POISON, 1)],  # and has taken all the others
            [(b"0", 2), (POISON, 2)],
            [(POISON, 3)],
            [(b"1", 2), (POISON, 2)],
            [(POISON, 3)],
        ]
        last = region.start(receiving)
        assert [last.hear(), last.hear()] == [(b"2", 2), (b"3", 2)]
        sender.flush(PATIENCE)
        assert sender.counts["undone"] == 2


def test_a_request_that_kills_comes_back_failed_and_the_others_are_answered(make_region):
    queue = QueueSpec(16, 1 << 16)
    region = make_region(DeviceSpec("echo0", ECHO_ID, (queue,), restart="resume", max_attempts=LIMIT))
    first = region.start(handling)
    with Driver.attach(region.name, timeout=PATIENCE) as driver:
        questions = [b"good", POISON, b"shy", b"fine"]
        requests = [driver.submit([question], [16]) for question in questions]
        deaf = driver.submit([POISON], [])
        driver.kick()
        assert first.end() == -signal.SIGKILL
        for _ in range(2 * LIMIT - 1):
            assert region.start(handling).end() == -signal.SIGKILL
        region.start(handling)
        back = []
        while len(back) < 5:
            back += driver.completed(PATIENCE)
        assert [requests[number].output() for number in (0, 2, 3)] == [b"GOOD", b"", b"FINE"]
        for request in (requests[1], deaf):
            assert isinstance(request.error, RequestLost)
            with pytest.raises(RequestLost, match="given up"):
                request.output()
        for request in back:
            request.release()
        for _ in range(20):
            assert driver.request(b"shy", 16, timeout=PATIENCE) == b""
        shown = take(region.name).devices[0]
        assert (shown.resumed, shown.queues[0].device["undone"]) == (2 * LIMIT, 2)
