"""A device that is killed at any step has a successor that goes on: nothing is lost, nothing comes back twice.

The histories are checked against what the dead process is known to have done: it says so over its pipe, or a file that
it appends to, before it does the next thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from vqshm_harness import BOTH, ECHO_ID, PATIENCE, wait_until

from vqshm import Device, Driver
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    DeviceNeedsReset,
    InvalidInflight,
    NegotiationError,
    PeerGone,
    RequestLost,
)
from vqshm.host.aio import AsyncDriver
from vqshm.transport import DeviceSpec, QueueSpec
from vqshm.view.snapshot import take as take_snapshot

SIZE = 32
ENTRY = 32  # bytes


def spec(restart="resume", queues=1, size=SIZE, name="echo0"):
    return DeviceSpec(name, ECHO_ID, (QueueSpec(size, 1 << 18),) * queues, restart=restart)


# -- devices that die --------------------------------------------------------------------------------------------------

STEPS = ("before the take", "taken", "handled", "element written", "shown", "called")


class Diary:
    """What a process did, in a file that survives it: one line for each thing, complete or absent."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *words):
        # So many bytes that no entry lies in two pages: SIGKILL cuts what is written to a file between two of them.
        os.write(self.fd, f"{' '.join(map(str, words)):<{ENTRY - 1}}\n".encode())


def read_diary(path):
    return [line.split() for line in Path(path).read_text().splitlines()]


def handled(path):
    return [tuple(words) for what, *words in read_diary(path) if what == "handled"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def handle(chain, diary):
    """Echo; and note which message it was, and whether it was flagged."""
    message = chain.reader().read()
    diary.note("handled", message.decode(), "again" if chain.replayed else "new")
    return chain.writer().write(message)


def stepping(me, name, path, step, after, depth):
    """A device that takes `depth` chains at a time, returns the youngest first, and dies at a step of chain `after`."""
    diary = Diary(path)
    with Device.attach(name) as device:
        diary.note("born")
        me.send("up")
        device.wait_driver()
        returned = 0
        while (held := take(device, diary, depth, after - returned, step)) is not None:
            for chain, written in reversed(held):
                returned += 1
                give_back(device, chain, written, step if returned == after else "")


def take(device, diary, depth, last, step):
    """Take and handle what there is, `depth` chains at most; die before or behind the take of the `last` one.

    None when the driver has left.
    """
    held = []
    while not held or (len(held) < depth and device.ports[0].has_work):
        if step == "before the take" and len(held) + 1 == last:
            wait_until(lambda: device.ports[0].has_work, "there is something to take")
            die()
        chain = device.next_chain()
        if chain is None:
            return None
        held.append((chain, handle(chain, diary)))
        if step == "taken" and len(held) == last:
            die()
    return held


def give_back(device, chain, written, step):
    """Return a chain, and die at a step of that."""
    if step == "handled":
        die()
    if step == "element written":
        chain.queue.put_used(chain.head_index, written)
        die()
    if step == "shown":
        chain.queue.add_used(chain.head_index, written)
        die()
    device.complete(chain, written)
    if step == "called":
        die()


def patient(me, name, path, depth=1):
    """A device that does not die by itself."""
    stepping(me, name, path, "never", -1, depth)


def check_history(entries, sent):
    """Each message was handled at least once, a second time only flagged; what is flagged came first, and in order."""
    lives = [[]]
    for what, *words in entries:
        if what == "born":
            lives.append([])
        else:
            lives[-1].append((int(words[0]), words[1] == "again"))
    seen = set()
    for life in lives:
        replayed = [number for number, again in life if again]
        assert [again for _, again in life] == [True] * len(replayed) + [False] * (len(life) - len(replayed))
        assert replayed == sorted(replayed)
        for number, again in life:
            assert again or number not in seen, f"{number} was handled twice, and not flagged"
            seen.add(number)
    assert seen == set(range(sent))
    news = [number for life in lives for number, again in life if not again]
    assert news == sorted(news)


@pytest.mark.fault("D01", "D02", "D05")
@pytest.mark.parametrize("depth", [1, 5], ids=["in order", "out of order"])
@pytest.mark.parametrize("step", STEPS)
def test_a_device_killed_at_a_step_has_a_successor_that_goes_on(make_region, tmp_path, step, depth):
    region = make_region(spec())
    diary = tmp_path / "diary"
    first = region.start(stepping, diary, step, 7, depth)
    with Driver.attach(region.name) as driver:
        requests = [driver.submit([b"%d" % n], [16], tag=n) for n in range(12)]
        driver.kick()
        assert first.end() == -signal.SIGKILL
        region.start(patient, diary, depth)
        answers = {}
        while len(answers) < len(requests):
            for request in driver.completed(PATIENCE):
                with request:
                    answers[request.tag] = request.output()
        assert answers == {n: b"%d" % n for n in range(12)}
        assert driver.in_flight == 0
        assert driver.request(b"12", 16, timeout=PATIENCE) == b"12"
    check_history(read_diary(diary), 13)


@pytest.mark.fault("D05")
@BOTH
def test_a_driver_that_sleeps_hears_of_what_was_shown_and_not_called_for(make_region, start, tmp_path, notify):
    region = make_region(spec(), notify=notify)
    device = region.start(stepping, tmp_path / "diary", "shown", 1, 1)
    actor = start(asking, region.name, 0.3)
    assert actor.hear() == "up"
    assert device.end() == -signal.SIGKILL
    answer, seconds = actor.hear()  # there is no successor: the death itself wakes it
    assert answer == b"question"
    assert seconds < 5


def asking(me, name, pause):
    with Driver.attach(name) as driver:
        me.send("up")
        time.sleep(pause)  # so that the device sleeps, and is woken by this
        start = time.monotonic()
        me.send((driver.request(b"question", 16, timeout=PATIENCE), time.monotonic() - start))


@pytest.mark.fault("D01")
@BOTH
def test_a_driver_waits_for_the_successor_and_sees_no_error(make_region, start, tmp_path, notify):
    region = make_region(spec(), notify=notify)
    device = region.start(stepping, tmp_path / "diary", "taken", 1, 1)
    actor = start(asking, region.name, 0)
    assert actor.hear() == "up"
    assert device.end() == -signal.SIGKILL
    wait_until(lambda: actor.state() == "S", "the driver sleeps")
    spent = actor.cpu_seconds()
    time.sleep(0.3)
    assert actor.cpu_seconds() - spent < 0.1  # it waits, it does not look again and again
    region.start(patient, tmp_path / "diary")
    assert actor.hear()[0] == b"question"
    assert handled(tmp_path / "diary") == [("question", "new"), ("question", "again")]


def test_a_wait_for_a_successor_ends_at_its_deadline_and_says_so(make_region, tmp_path):
    region = make_region(spec())
    device = region.start(stepping, tmp_path / "diary", "taken", 1, 1)
    with Driver.attach(region.name) as driver:
        with pytest.raises(DeadlineExceeded, match="has ended and got no successor"):
            driver.request(b"question", 16, timeout=0.5)
        assert device.end() == -signal.SIGKILL
        assert take_snapshot(region.name).devices[0].orphaned
        region.start(patient, tmp_path / "diary")
        assert driver.request(b"again", 16, timeout=PATIENCE) == b"again"
        shown = take_snapshot(region.name).devices[0]
        assert (shown.restart, shown.orphaned, shown.resumed) == ("resume", False, 1)


def test_a_reset_ends_the_wait_and_the_next_device_begins_anew(make_region, tmp_path):
    region = make_region(spec())
    device = region.start(stepping, tmp_path / "diary", "taken", 1, 1)
    with Driver.attach(region.name) as driver:
        driver.submit([b"0"], [16])
        driver.kick()
        assert device.end() == -signal.SIGKILL
        with pytest.raises(DeadlineExceeded):
            driver.reset(0.2)
        region.start(patient, tmp_path / "diary2")
        (lost,) = driver.reset(PATIENCE)
        lost.release()
        assert driver.request(b"0", 16, timeout=PATIENCE) == b"0"
    assert handled(tmp_path / "diary2") == [("0", "new")]


def test_what_a_driver_left_that_ended_while_it_waited_is_served_before_the_next(make_region, start, tmp_path):
    region = make_region(spec())
    device = region.start(stepping, tmp_path / "diary", "taken", 1, 1)
    actor = start(asking, region.name, 0)
    assert actor.hear() == "up"
    assert device.end() == -signal.SIGKILL
    actor.kill()
    second = region.start(patient, tmp_path / "diary2")
    assert second.end() == 0
    assert handled(tmp_path / "diary2") == [("question", "again")]
    region.start(patient, tmp_path / "diary3")
    with Driver.attach(region.name, timeout=PATIENCE) as driver:
        assert driver.request(b"0", 16, timeout=PATIENCE) == b"0"
    assert handled(tmp_path / "diary3") == [("0", "new")]


def test_without_a_coordinator_nobody_can_come_and_the_driver_is_told(make_region, tmp_path):
    region = make_region(spec())
    device = region.start(stepping, tmp_path / "diary", "taken", 1, 1)
    with Driver.attach(region.name) as driver:
        driver.submit([b"0"], [16])
        region.coordinator.kill()
        driver.kick()
        assert device.end() == -signal.SIGKILL
        with pytest.raises((PeerGone, CoordinatorGone)):
            list(driver.completed(PATIENCE))


def test_a_device_that_leaves_hands_its_session_over(make_region):
    region = make_region(spec())
    with Device.attach(region.name) as old:
        actor = region.start(sending, 4)
        old.wait_driver(PATIENCE)
        first = old.next_chain(PATIENCE)
        old.complete(first, first.writer().write(b"old"))
        for _ in range(2):
            old.next_chain(PATIENCE)
    with Device.attach(region.name) as new:
        new.wait_driver(PATIENCE)
        assert new.resumed
        replayed = []
        for _ in range(3):
            chain = new.next_chain(PATIENCE)
            replayed.append(chain.replayed)
            new.complete(chain, chain.writer().write(b"new"))
        assert replayed == [True, True, False]
        assert actor.hear() == [b"old", b"new", b"new", b"new"]


def sending(me, name, count):
    with Driver.attach(name) as driver:
        me.send("up")
        requests = [driver.submit([b"%d" % n], [16]) for n in range(count)]
        driver.kick()
        answers = {}
        while len(answers) < count:
            for request in driver.completed(PATIENCE):
                answers[requests.index(request)] = request.output()
        me.send([answers[n] for n in range(count)])
        me.recv()


def test_a_successor_must_offer_what_was_agreed_on(make_region, tmp_path):
    region = make_region(spec())
    with Device.attach(region.name, features=1 << 3) as old:
        actor = region.start(sending, 1)
        old.wait_driver(PATIENCE)
    with pytest.raises(NegotiationError):
        Device.attach(region.name)
    with Device.attach(region.name, features=1 << 3) as new:
        new.wait_driver(PATIENCE)
        chain = new.next_chain(PATIENCE)
        new.complete(chain, 0)
        assert actor.hear() == [b""]


def test_an_area_that_a_driver_spoilt_breaks_that_queue_alone(make_region):
    region = make_region(spec(queues=2))
    with Device.attach(region.name) as old:
        actor = region.start(spoiling)
        old.wait_driver(PATIENCE)
        actor.say("spoil it")
        assert actor.hear() == "spoilt"
    with Device.attach(region.name) as new:
        new.wait_driver(PATIENCE)
        chain = new.next_chain(PATIENCE)
        assert new.ports[0].queue.broken is not None
        assert isinstance(new.ports[0].queue.broken, InvalidInflight)
        assert chain.queue is new.ports[1].queue
        new.complete(chain, chain.writer().write(b"fine"))
        assert actor.hear() == b"fine"
        assert "last batch" in actor.hear()


def spoiling(me, name):
    with Driver.attach(name) as driver:
        me.send("up")
        driver.submit([b"x"], [16], queue=0)
        request = driver.submit([b"x"], [16], queue=1)
        area = driver.plan.queues[0].inflight
        me.recv()
        driver.memory.write(area.address + 14, b"\x00\x80")  # used_idx
        me.send("spoilt")
        while not request.done:
            for done in driver.completed(PATIENCE):
                me.send(done.output())
        try:
            list(driver.completed(PATIENCE))
        except DeviceNeedsReset as error:
            me.send(str(error))


@pytest.mark.fault("D01", "D02")
def test_an_event_loop_sees_no_error_either_however_often_its_device_dies(make_region, tmp_path):
    region = make_region(spec())

    async def main():
        device = region.start(stepping, tmp_path / "diary", "taken", 2, 1)
        async with await AsyncDriver.attach(region.name) as driver:
            for death in range(1, 4):
                words = [b"%d" % n for n in range(3)]
                requests = [asyncio.create_task(driver.request(word, 16, timeout=PATIENCE)) for word in words]
                assert await asyncio.to_thread(device.end) == -signal.SIGKILL
                step = ("patient", -1) if death == 3 else ("taken", 4)
                device = await asyncio.to_thread(region.start, stepping, tmp_path / "diary", *step, 1)
                assert await asyncio.gather(*requests) == words

    asyncio.run(main())


# -- fail in flight ----------------------------------------------------------------------------------------------------


@BOTH
def test_what_a_killed_device_had_fails_and_the_next_request_begins_anew(make_region, tmp_path, notify):
    region = make_region(spec("fail"), notify=notify)
    device = region.start(stepping, tmp_path / "diary", "shown", 3, 1)
    with Driver.attach(region.name) as driver:
        free = driver.ports[0].pool.free
        for tag in range(5):
            driver.submit([b"%d" % tag], [16], tag=tag)
        driver.kick()
        assert device.end() == -signal.SIGKILL
        answers, failed = {}, {}
        while len(answers) + len(failed) < 5:
            for request in driver.completed(PATIENCE):
                with request:
                    if request.error is None:
                        answers[request.tag] = request.output()
                    else:
                        failed[request.tag] = request.error
                        with pytest.raises(RequestLost) as caught:
                            request.output()
                        assert caught.value.facts == {"pid": device.pid, "queue": 0}
        assert answers == {tag: b"%d" % tag for tag in range(3)}
        assert set(failed) == {3, 4}
        with pytest.raises(PeerGone, match="the device is gone"):
            driver.submit([b"x"], [8])
        region.start(patient, tmp_path / "diary2")
        assert driver.request(b"after", 16, timeout=PATIENCE) == b"after"
        driver.submit([b"again"], [16])
        ((answer),) = driver.completed(PATIENCE)
        with answer:
            assert answer.output() == b"again"
        assert driver.in_flight == 0
        assert driver._port(0).pool.free <= free
    assert handled(tmp_path / "diary2") == [("after", "new"), ("again", "new")]


def test_one_request_fails_by_name_and_the_next_waits_for_a_device(make_region, start, tmp_path):
    region = make_region(spec("fail"))
    device = region.start(stepping, tmp_path / "diary", "taken", 1, 1)
    with Driver.attach(region.name) as driver:
        with pytest.raises(RequestLost) as caught:
            driver.request(b"x", 16, timeout=PATIENCE)
        assert caught.value.facts["pid"] == device.pid
        with pytest.raises(PeerGone):
            driver.request(b"x", 16, timeout=0.2)
        region.start(patient, tmp_path / "diary")
        assert driver.request(b"y", 16, timeout=PATIENCE) == b"y"


def test_in_an_event_loop_requests_fail_by_name_and_the_next_ones_begin_anew(make_region, tmp_path):
    region = make_region(spec("fail"))

    async def main():
        device = region.start(stepping, tmp_path / "diary", "taken", 1, 1)
        async with await AsyncDriver.attach(region.name) as driver:
            requests = [driver.request(b"%d" % n, 16, timeout=PATIENCE) for n in range(3)]
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [RequestLost] * 3
            assert device.end() == -signal.SIGKILL
            with pytest.raises(PeerGone):
                await driver.request(b"x", 16, timeout=PATIENCE)
            await asyncio.to_thread(region.start, patient, tmp_path / "diary")
            assert await driver.request(b"y", 16, timeout=PATIENCE) == b"y"

    asyncio.run(main())


# -- again and again ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.fault("D01", "D02", "D23")
@pytest.mark.parametrize("depth", [1, 7], ids=["in order", "out of order"])
def test_devices_killed_at_any_moment_lose_nothing_and_return_nothing_twice(make_region, tmp_path, depth):
    region = make_region(spec())
    diary = tmp_path / "diary"
    rolls = random.Random(4)
    device = region.start(patient, diary, depth)
    actor = region.start(keeping_busy)
    kills = 30
    for _ in range(kills):
        time.sleep(rolls.random() * 0.03)
        device.kill()
        device = region.start(patient, diary, depth)
    actor.say("enough")
    sent = actor.hear()
    assert sent > kills
    check_history(read_diary(diary), sent)


def keeping_busy(me, name):
    """Keep messages in flight until told that it is enough, then say how many there were; each came back once."""
    with Driver.attach(name, timeout=PATIENCE) as driver:
        me.send("up")
        sent, done = 0, set()
        while not (me.poll() and sent == len(done)):
            while not me.poll() and sent - len(done) < 20:
                driver.submit([b"%d" % sent], [16], tag=sent)
                sent += 1
            for request in driver.completed(PATIENCE):
                with request:
                    assert request.tag not in done
                    assert request.output() == b"%d" % request.tag
                    done.add(request.tag)
        me.send(sent)
        with contextlib.suppress(EOFError):
            me.recv()
            me.recv()
