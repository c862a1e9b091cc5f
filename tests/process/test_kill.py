"""kill -9 at any of the three: who is left hears of it, loses nothing that was answered, goes on with a successor."""

from __future__ import annotations

import contextlib
import random
import signal

import pytest
from vqshm_harness import (
    BOTH,
    PATIENCE,
    clear_away,
    coordinate,
    descriptors,
    echo,
    echo_spec,
    new_name,
    pumping,
    wait_until,
)

from vqshm import Device, Driver
from vqshm.errors import (
    DeadlineExceeded,
    PeerGone,
    QueueFull,
)
from vqshm.host import sweep
from vqshm.host.system import names, shm


def hungry(me, name, answered):
    """A device that takes everything, says so, and answers only the first chains."""
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        for number, chain in enumerate(device):
            if number < answered:
                device.complete(chain, chain.writer().write(chain.reader().read()))
            me.send(number)


def flooding(me, name):
    """A driver that keeps its queue full, and never says goodbye."""
    with Driver.attach(name) as driver:
        me.send("up")
        while True:
            try:
                driver.submit([b"flood"], [8])
            except QueueFull:
                me.send("full")
                for request in driver.completed():
                    request.release()


# -- the device --------------------------------------------------------------------------------------------------------


@BOTH
def test_a_killed_device_is_gone_with_what_it_had_and_its_successor_goes_on(make_region, notify):
    region = make_region(notify=notify)
    device = region.start(hungry, 4)
    with Driver.attach(region.name) as driver:
        free = driver.ports[0].pool.free
        for tag in range(10):
            driver.submit([b"%d" % tag], [8], tag=tag)
        driver.kick()
        while device.hear() != 9:
            pass
        device.signal(signal.SIGKILL)  # while this driver is about to wait, with answers it has not seen
        answered = {}
        with pytest.raises(PeerGone) as caught:
            collect(driver, answered)
        assert caught.value.facts == {"pid": device.pid, "role": "device", "in_flight": 6}
        assert answered == {tag: b"%d" % tag for tag in range(4)}
        with pytest.raises(PeerGone):
            driver.request(b"x", 8)
        region.echo()
        lost = driver.reset(PATIENCE)
        assert sorted(request.tag for request in lost) == list(range(4, 10))
        for request in lost:
            request.release()
        assert driver.ports[0].pool.free == free
        assert driver.request(b"as if nothing had been", 64, timeout=PATIENCE) == b"as if nothing had been"


@BOTH
def test_a_driver_that_sleeps_is_woken_by_the_death_of_its_device(make_region, start, notify):
    region = make_region(notify=notify)
    device = region.start(hungry, 0)
    actor = start(sleeping, region.name)
    assert actor.hear() == "up"
    assert device.hear() == 0
    wait_until(lambda: actor.state() == "S", "the driver sleeps")
    device.kill()
    assert actor.hear() == ("PeerGone", {"pid": device.pid, "role": "device", "in_flight": 1})


def collect(driver, answered):
    """Take answers until the device is gone."""
    while True:
        for request in driver.completed():
            with request:
                answered[request.tag] = request.output()


def sleeping(me, name):
    with Driver.attach(name) as driver:
        me.send("up")
        try:
            driver.request(b"x", 8)
        except PeerGone as error:
            me.send((type(error).__name__, error.facts))


@BOTH
def test_a_device_that_is_killed_again_and_again_costs_neither_buffers_nor_descriptors(make_region, notify):
    region = make_region(notify=notify)
    device = region.echo()
    with Driver.attach(region.name) as driver:
        free, before, theirs = driver.ports[0].pool.free, descriptors(), region.coordinator.descriptors()
        for number in range(10):
            device.freeze()
            driver.submit([b"x"], [8])
            device.kill()
            with pytest.raises(PeerGone):
                collect(driver, {})
            device.connection.close()
            device = region.echo()
            for request in driver.reset(PATIENCE):
                request.release()
            assert driver.request(b"%d" % number, 8, timeout=PATIENCE) == b"%d" % number
        assert driver.ports[0].pool.free == free
        wait_until(lambda: region.coordinator.descriptors() == theirs, "the coordinator has closed what it had open")
        assert descriptors() == before


def test_a_reset_waits_for_the_successor_of_a_killed_device(region, start):
    device = region.echo()
    actor = start(resetting, region.name)
    assert actor.hear() == "up"
    device.kill()
    assert actor.hear() == "resets"
    wait_until(lambda: actor.state() == "S", "it waits")
    region.echo()
    assert actor.hear() == b"after"


def resetting(me, name):
    with Driver.attach(name) as driver:
        me.send("up")
        try:
            while True:
                driver.request(b"before", 8)
        except PeerGone:
            me.send("resets")
        driver.reset(PATIENCE)
        me.send(driver.request(b"after", 8))


# -- the driver --------------------------------------------------------------------------------------------------------


@BOTH
def test_after_a_killed_driver_the_device_finishes_and_serves_the_next(make_region, notify):
    region = make_region(notify=notify)
    device = region.echo()
    for _ in range(5):
        driver = region.start(pumping)
        driver.hear()
        driver.kill()
        with Driver.attach(region.name, timeout=PATIENCE) as successor:
            assert successor.request(b"next", 64, timeout=PATIENCE) == b"next"
    assert device.state() in "RS"


@BOTH
def test_a_device_serves_what_a_killed_driver_had_published_and_then_lets_go(make_region, start, notify):
    region = make_region(notify=notify)
    with Device.attach(region.name) as device:
        driver = start(flooding, region.name)
        assert driver.hear() == "up"
        device.wait_driver(PATIENCE)
        assert driver.hear() == "full"
        driver.kill()
        served = 0
        while (chain := device.next_chain(PATIENCE)) is not None:
            device.complete(chain, chain.writer().write(b"too late"))
            served += 1
        assert served == 64
        assert not device.running
        successor = start(pumping, region.name)
        assert successor.hear() == "up"
        device.wait_driver(PATIENCE)
        for _ in range(100):
            chain = device.next_chain(PATIENCE)
            device.complete(chain, chain.writer().write(chain.reader().read()))
        assert successor.hear() == 100


# -- everybody ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D10")
@BOTH
def test_after_all_three_were_killed_the_name_is_free_at_once(start, notify):
    name = new_name()
    for _ in range(5):
        actors = [start(coordinate, name, (echo_spec(),), notify)]
        assert actors[0].hear() == "ready"
        actors += [start(echo, name), start(pumping, name)]
        for actor in actors[1:]:
            actor.hear()
        actors[2].hear()
        for actor in actors:
            actor.signal(signal.SIGKILL)
        for actor in actors:
            actor.end()
    assert name in sweep([name])
    assert not list(shm.DIRECTORY.glob(f"*vqshm.{name}*"))
    assert not names.socket_path(name).exists()


# -- stopped, not killed -----------------------------------------------------------------------------------------------


@pytest.mark.fault("C10")
@BOTH
def test_a_stopped_device_is_alive_and_nothing_is_lost_when_it_goes_on(make_region, notify):
    region = make_region(notify=notify)
    device = region.echo()
    with Driver.attach(region.name) as driver:
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
        device.freeze()
        requests = [driver.submit([b"%d" % tag], [8], tag=tag) for tag in range(30)]
        with pytest.raises(DeadlineExceeded, match=rf"process {device.pid}, is alive.* 30 requests in flight"):
            list(driver.completed(timeout=0.05))
        with pytest.raises(DeadlineExceeded):
            driver.reset(timeout=0.05)  # it cannot let go
        device.signal(signal.SIGCONT)
        lost = driver.reset(PATIENCE)
        assert lost == requests
        for request in lost:
            request.release()
        device.freeze()
        sent = [driver.submit([b"%d" % tag], [8], tag=tag) for tag in range(30)]
        driver.kick()
        device.signal(signal.SIGCONT)
        done = []
        while len(done) < 30:
            done += driver.completed(PATIENCE)
        assert done == sent
        assert [request.output() for request in done] == [b"%d" % tag for tag in range(30)]


@BOTH
def test_a_stopped_driver_holds_nobody_up(make_region, notify):
    region = make_region(echo_spec("left"), echo_spec("right"), notify=notify)
    left = region.echo("left")
    region.echo("right")
    stopped = region.start(pumping, "left")
    stopped.hear()
    stopped.freeze()
    with Driver.attach(region.name, "right") as driver:
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
    wait_until(lambda: left.state() == "S", "its device sleeps")
    stopped.signal(signal.SIGCONT)
    count = stopped.hear()
    while stopped.hear() < count + 200:
        pass


def test_a_stopped_coordinator_is_a_deadline_for_control_calls_only(region):
    region.echo()
    with Driver.attach(region.name) as driver:
        region.coordinator.freeze()
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
        with pytest.raises(DeadlineExceeded, match=rf"coordinator \(process {region.coordinator.pid}\)"):
            driver.reset(timeout=0.05)
        with pytest.raises(DeadlineExceeded, match=str(region.coordinator.pid)):
            Driver.attach(region.name, timeout=0.05)
        region.coordinator.signal(signal.SIGCONT)
        assert driver.reset(PATIENCE) == []
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"


# -- at random ---------------------------------------------------------------------------------------------------------


class World:
    """All three roles; the driver is here, and checks every answer."""

    def __init__(self, start, notify) -> None:
        self.start = start
        self.notify = notify
        self.name = new_name()
        self.number = 0
        self.begin()

    def begin(self) -> None:
        self.coordinator = self.start(coordinate, self.name, (echo_spec(),), self.notify)
        assert self.coordinator.hear() == "ready"
        self.new_device()
        self.driver = Driver.attach(self.name)

    def new_device(self) -> None:
        self.device = self.start(echo, self.name)
        self.device.hear()

    def requests(self, count: int) -> None:
        for _ in range(count):
            word = self.number.to_bytes(8, "little")
            assert self.driver.request(word, 8, timeout=PATIENCE) == word
            self.number += 1

    def batch(self, count: int) -> list:
        sent = [self.driver.submit([b"%d" % tag], [8], tag=tag) for tag in range(count)]
        self.driver.kick()
        return sent

    def collect(self, sent: list) -> None:
        """Every answer comes once and in order."""
        while sent:
            for request in self.driver.completed(PATIENCE):
                with request:
                    assert request is sent.pop(0)
                    assert request.output() == b"%d" % request.tag

    def lose(self, victim: str, sent: list) -> None:
        if victim == "driver":
            self.driver.close()
            self.driver = Driver.attach(self.name, timeout=PATIENCE)
        elif victim == "device":
            self.device.kill()
            with contextlib.suppress(PeerGone):
                self.collect(sent)
            self.device.connection.close()
            self.new_device()
            lost = self.driver.reset(PATIENCE)
            assert lost == sent
            for request in lost:
                request.release()
        else:
            self.coordinator.kill()
            self.collect(sent)
            self.end()
            self.begin()

    def end(self) -> None:
        self.driver.close()
        for actor in (self.device, self.coordinator):
            actor.kill()
            actor.connection.close()


@pytest.mark.long
@BOTH
def test_two_hundred_random_kills_lose_no_answer_and_leave_nothing(start, notify):
    rng = random.Random(20260101)
    world = World(start, notify)
    before = descriptors()
    for _ in range(200):
        world.requests(rng.randrange(200))
        world.lose(rng.choice(["device", "device", "coordinator", "driver"]), world.batch(rng.randrange(1, 30)))
        assert descriptors() == before
    world.end()
    clear_away(world.name)
    assert not list(shm.DIRECTORY.glob(f"*vqshm.{world.name}*"))
    assert world.number > 1000
