"""Ctrl-C, or whatever a signal handler raises, at every single bytecode: nothing is lost, everything goes on.

A run is repeated with the exception at the first bytecode of the traced modules, at the second, and so on until a run
ends undisturbed. After each the handle must serve on as if nothing had been, with every buffer back.
"""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import pytest
from vqshm_harness import BOTH, PATIENCE, Interrupter, echo_spec

from vqshm import Device, Driver, core
from vqshm.errors import UsedIdNotInFlight
from vqshm.host import device as device_module
from vqshm.host import driver as driver_module
from vqshm.host import ports
from vqshm.host import request as request_module
from vqshm.memory import GuestMemory, pool
from vqshm.notify import EventFd
from vqshm.ring import QueueConfig, SplitLayout, inflight, split_device, split_driver

INTERPRETED = core.kind() == "interpreted"
MODULES = [driver_module, ports, request_module, pool, *([split_driver] if INTERPRETED else [])]
DEVICE_MODULES = [device_module, ports, *([split_device, inflight] if INTERPRETED else [])]
FILES = frozenset(module.__file__ for module in MODULES)
DEVICE_FILES = frozenset(module.__file__ for module in DEVICE_MODULES)
SIZE = 8


class Obliging:
    """A strategy of a driver that lets the device, in the same process, do its work instead of sleeping."""

    def __init__(self) -> None:
        self.oblige = None

    def wait(self, ready, arm, park, deadline):
        while not ready():
            assert not deadline.expired
            if not arm():
                self.oblige()
            park(0)
        return True


class World:
    """A driver that is interrupted, and its device, which is not."""

    def __init__(self, name: str) -> None:
        self.device = Device.attach(name)
        self.strategy = Obliging()
        self.strategy.oblige = self.serve
        self.driver = Driver.attach(name, strategy=self.strategy)
        self.device.wait_driver(PATIENCE)
        self.device.arm()
        self.interrupter = None
        self.seen: list[bytes] = []  # by the device
        self.free = self.driver.ports[0].pool.free

    def close(self) -> None:
        self.driver.close()
        self.device.close()

    def serve(self) -> None:
        """Answer everything, in order, if the doorbell was rung."""
        with self.interrupter.not_now():
            if not self.device.kicks[0].wait(0):
                assert not self.device.ready(), "chains were published and the device was not kicked"
                return
            while (chain := self.device.pop()) is not None:
                word = chain.reader().read()
                self.seen.append(word)
                self.device.complete(chain, chain.writer().write(word))
            assert not self.device.arm()

    def check(self, got: list) -> list[bytes]:
        """Everything comes to an end; what the driver's user got to see, after what is in `got`."""
        deadline = time.monotonic() + PATIENCE
        self.driver.kick()
        while self.driver.in_flight:
            got += self.driver.completed(PATIENCE)
            assert time.monotonic() < deadline
        got += self.driver.completed(0)
        for request in got:
            assert request.output() == request.tag
            request.release()
        queue = self.driver.ports[0].queue
        assert (queue.num_free, queue.in_flight, self.driver.ports[0].in_flight) == (SIZE, 0, {})
        assert self.driver.ports[0].pool.free == self.free
        assert not self.driver.ready()
        return [request.tag for request in got]

    def check_free_list(self) -> None:
        """All descriptors can be used, each once."""
        tags = [b"%d" % number for number in range(SIZE)]
        requests = [self.driver.submit([tag], [16], tag=tag) for tag in tags]
        assert sorted(request.token for request in requests) == list(range(SIZE))
        assert self.check([]) == tags


@pytest.fixture
def make_world(make_region):
    worlds = []

    def make(notify="eventfd"):
        worlds.append(World(make_region(echo_spec(size=SIZE), notify=notify).name))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def runs(world, files=FILES):
    """As `count_up`, for a world."""
    for interrupter in count_up(files):
        world.interrupter = interrupter
        world.seen.clear()
        yield interrupter


def count_up(files):
    """An interrupter for each bytecode of what is done in the loop, until one is too late to strike."""
    number = 0
    while True:
        number += 1
        interrupter = Interrupter(number, files)
        yield interrupter
        if not interrupter.struck:
            break
    assert number > 100, "hardly anything was traced"


@pytest.mark.fault("D19")
@pytest.mark.parametrize("pieces", [1, 3])
def test_an_interrupted_submission_offers_all_of_a_chain_or_nothing_of_it(make_world, pieces):
    world = make_world()
    for interrupter in runs(world):
        got, sent = [], []
        with interrupter:
            for tag in (b"abc", b"def"):
                world.driver.submit([tag[:1], tag[1:]][:pieces] if pieces > 1 else [tag], [16] * pieces, tag=tag)
                sent.append(tag)
            world.driver.kick()
        tags = world.check(got)
        assert tags == world.seen, interrupter.where
        assert tags in ([b"abc", b"def"][:count] for count in (len(sent), len(sent) + 1)), interrupter.where
        world.check_free_list()


@pytest.mark.fault("D19")
def test_interrupted_reaping_loses_no_answer_and_delivers_none_twice(make_world):
    world = make_world()
    for interrupter in runs(world):
        got, tags = [], [b"%d" % number for number in range(4)]
        for tag in tags:
            world.driver.submit([tag], [16], tag=tag)
        world.driver.kick()
        world.serve()
        with interrupter:
            got.append(world.driver.reap())
            for request in world.driver.completed(PATIENCE):
                got.append(request)  # noqa: PERF402 - one by one, so that none is lost here
        assert world.check(got) == tags == world.seen, interrupter.where
        world.check_free_list()


@pytest.mark.fault("D19")
def test_an_interrupted_wait_for_answers_goes_on(make_world):
    world = make_world()
    for interrupter in runs(world):
        got, tags = [], [b"%d" % number for number in range(3)]
        for tag in tags:
            world.driver.submit([tag], [16], tag=tag)
        with interrupter:
            for request in world.driver.completed(PATIENCE):
                got.append(request)  # noqa: PERF402 - as above
        assert world.check(got) == tags == world.seen, interrupter.where


@pytest.mark.fault("D19")
@BOTH
def test_an_interrupted_request_gives_everything_back_and_others_get_theirs(make_world, notify):
    world = make_world(notify)
    for interrupter in runs(world):
        got = []
        first = world.driver.submit([b"first"], [16], tag=b"first")
        with interrupter:
            assert world.driver.request(b"mine", 16) == b"mine"
        assert world.check(got) == [b"first"], interrupter.where
        assert got == [first]
        assert world.seen in ([b"first"], [b"first", b"mine"]), interrupter.where
        world.check_free_list()


@pytest.mark.fault("D19")
def test_releasing_may_be_interrupted_and_called_again(make_world):
    world = make_world()
    for interrupter in runs(world):
        request = world.driver.submit([b"a", b"b", b"c"], [16, 16], tag=b"abc")
        assert list(world.driver.completed(PATIENCE)) == [request]
        request.views()
        with interrupter:
            request.release()
        other = world.driver.submit([b"d"], [16], tag=b"d")
        request.release()
        assert world.check([]) == [b"d"], interrupter.where
        assert other.done


@pytest.mark.fault("D19")
@pytest.mark.parametrize("iterate", [False, True])
def test_an_interrupted_device_takes_and_returns_every_chain_once(make_world, iterate):
    """What `complete` had done already when it was interrupted, a second call refuses."""
    world = make_world()
    world.interrupter = Interrupter(0, FILES)
    for interrupter in runs(world, DEVICE_FILES):
        tags = [b"%d" % number for number in range(3)]
        requests = [world.driver.submit([tag], [16], tag=tag) for tag in tags]
        world.driver.kick()
        world.driver.arm()
        taken = []
        with interrupter:
            if iterate:
                for chain in world.device:
                    taken.append(chain)
                    answer(world, chain)
                    if len(taken) == len(tags):
                        break
            else:
                while (chain := world.device.pop()) is not None:
                    taken.append(chain)
                    answer(world, chain)
        if taken and interrupter.struck:
            with contextlib.suppress(UsedIdNotInFlight):
                answer(world, taken[-1])
        while (chain := world.device.pop()) is not None:
            taken.append(chain)
            answer(world, chain)
        assert world.driver.calls[0].wait(0), interrupter.where
        assert [chain.reader().read() for chain in taken] == tags, interrupter.where
        assert list(world.driver.completed(0)) == requests
        assert world.check(requests) == tags


class Enough(BaseException):
    """There is nothing left to serve."""


class Ending:
    """A strategy of a device that ends where others would sleep."""

    def wait(self, ready, arm, park, deadline):
        if not ready() and not arm():
            raise Enough
        return True


HANDLER: dict = {}
SERVING = """
class Handler:
    device_id, features, config = 0x7601, 0, b""
    def __init__(self):
        self.handled = []
    def handle(self, chain):
        word = chain.reader().read()
        self.handled.append((word, chain.replayed))
        return chain.writer().write(word)
"""
exec(compile(SERVING, "<handler>", "exec"), HANDLER)


@pytest.mark.fault("D19")
@pytest.mark.parametrize("twice", [False, pytest.param(True, marks=pytest.mark.long)])
def test_what_an_interrupted_server_had_taken_it_serves_when_it_is_called_again(make_world, twice):
    """In the handler, in front of it, behind it: at any bytecode."""
    world = make_world()
    world.device.strategy = Ending()
    files = DEVICE_FILES | {"<handler>"}
    for number, interrupter in enumerate(runs(world, files)):
        handler = HANDLER["Handler"]()
        tags = [b"%d" % number for number in range(3)]
        requests = [world.driver.submit([tag], [16], tag=tag) for tag in tags]
        world.driver.kick()
        world.driver.arm()
        second = Interrupter(1 + number * 7 % 50 if twice else 1 << 30, files)
        for each in (interrupter, second, contextlib.nullcontext()):
            with contextlib.suppress(Enough), each:
                world.device.serve(handler)
        assert world.driver.calls[0].wait(0), interrupter.where
        words = [word for word, _ in handler.handled]
        assert list(dict.fromkeys(words)) == tags, interrupter.where
        again = [replayed for place, (word, replayed) in enumerate(handler.handled) if word in words[:place]]
        assert all(again), interrupter.where
        assert sum(replayed for _, replayed in handler.handled) <= 1 + twice, interrupter.where
        assert list(world.driver.completed(0)) == requests, interrupter.where
        assert world.check(requests) == tags


@pytest.mark.fault("D19")
def test_what_a_dead_device_had_taken_comes_again_even_if_its_coming_is_interrupted():
    layout = SplitLayout.at(0x1000, SIZE)
    area = -(-layout.end // 8) * 8
    region = bytearray(0x4000)
    memory = GuestMemory([(0x1000, region)])
    config = QueueConfig(layout)
    cells = SimpleNamespace(snapshot=lambda: {"taken": 0, "used": 0, "bytes_in": 0, "bytes_out": 0, "calls": 0})
    plan = SimpleNamespace(number=0, inflight=SimpleNamespace(address=area), tries_in=lambda _memory: None)
    driver, dead = config.driver(memory), config.device(memory, inflight=area)
    dead.begin()
    tokens = [driver.add([(0x4000, 1 + number)]) for number in range(4)]
    taken = [dead.pop_head() for _ in range(3)]
    left = bytes(region)
    for interrupter in count_up(DEVICE_FILES):
        region[:] = left
        bells = EventFd.create(), EventFd.create()
        port = ports.DevicePort(memory, plan, config, *bells, cells)
        assert port.resume() == 3
        came = []
        with interrupter:
            while (chain := port.pop()) is not None:
                came.append(chain)
                port.taking = False
        while (chain := port.pop()) is not None:
            came.append(chain)
            port.taking = False
        assert [chain.head_index for chain in came] == tokens, interrupter.where
        assert [chain.head_index for chain in came if chain.replayed] == taken
        for bell in bells:
            bell.close()


def answer(world, chain) -> None:
    """Echo."""
    with world.interrupter.not_now():
        written = chain.writer().write(chain.reader().read())
    world.device.complete(chain, written)


def test_the_interrupter_strikes_every_bytecode_once():
    """And is itself honest: as many runs as there are bytecodes to be struck, whatever a loop repeats."""
    struck = []
    for number in range(1, 10_000):
        interrupter = Interrupter(number, frozenset(["<victim>"]))
        with interrupter:
            VICTIM["victim"]()
        if not interrupter.struck:
            break
        struck.append(interrupter.where)
    assert len(struck) == number - 1 > 10
    assert set(struck) >= {"victim:2", "victim:3", "victim:4"}


VICTIM: dict = {}
SOURCE = "def victim():\n total = 0\n for each in range(3):\n  total += each\n return total\n"
exec(compile(SOURCE, "<victim>", "exec"), VICTIM)
