"""No strategy loses a wake-up, outlives its deadline, or is deaf to signals and to a dead peer."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import PeerGone
from vqshm.memory import atomic
from vqshm.notify import Adaptive, Block, Deadline, EventFd, Semaphore, Spin, Yield, park_on

NEVER = Deadline(None)
STRATEGIES = [Spin, Yield, Block, Adaptive, lambda: Adaptive(spin=0, yields=0)]
SLEEPERS = [Block, lambda: Adaptive(spin=0, yields=0), lambda: Adaptive(spin=0, yields=3)]


def no() -> bool:
    return False


def must_not_park(_seconds: float | None) -> None:
    raise AssertionError("parked although there is work")


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, float("inf")])
def test_a_deadline_without_timeout_never_expires(timeout):
    deadline = Deadline(timeout)
    assert deadline.remaining() is None
    assert not deadline.expired


def test_a_deadline_of_zero_has_expired():
    deadline = Deadline(0)
    assert deadline.remaining() == 0
    assert deadline.expired


def test_what_remains_shrinks_and_is_never_negative():
    deadline = Deadline(3600)
    first = deadline.remaining()
    assert 0 < deadline.remaining() <= first <= 3600
    assert not deadline.expired


@pytest.mark.parametrize("timeout", [-1, -1e-9, float("nan"), float("-inf")])
def test_a_senseless_timeout_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout"):
        Deadline(timeout)


# -- every strategy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_work_that_is_there_is_taken_at_once(strategy):
    assert strategy().wait(lambda: True, no, must_not_park, Deadline(0))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("timeout", [0, 0.005])
def test_a_wait_ends_at_its_deadline(strategy, timeout):
    assert not strategy().wait(no, no, time.sleep, Deadline(timeout))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_work_is_found_after_any_number_of_looks(strategy):
    looks = iter([False] * 500)
    assert strategy().wait(lambda: next(looks, True), no, lambda _seconds: None, NEVER)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dead_peer_ends_every_wait(strategy):
    def park(_seconds: float | None) -> None:
        raise PeerGone("the device ended")

    with pytest.raises(PeerGone):
        strategy().wait(no, no, park, NEVER)


@pytest.mark.parametrize("strategy", [Spin, Yield])
def test_those_who_do_not_sleep_neither_arm_nor_park_for_long(strategy):
    seconds = []
    strategy().wait(no, lambda: pytest.fail("armed"), seconds.append, Deadline(0.02))
    assert set(seconds) <= {0}


@pytest.mark.parametrize("strategy", SLEEPERS)
def test_work_found_while_arming_is_not_slept_upon(strategy):
    looks = iter([False] * 5)
    assert strategy().wait(lambda: next(looks, True), lambda: True, must_not_park, NEVER)


@pytest.mark.parametrize("strategy", SLEEPERS)
@given(arrival=st.integers(0, 40), spurious=st.integers(0, 5))
def test_no_wake_up_is_lost_wherever_the_work_arrives(strategy, arrival, spurious):
    world = World(arrival, spurious)
    assert strategy().wait(world.ready, world.arm, world.park, NEVER)


class World:
    """The other side publishes its work just before the n-th call, and notifies if it was asked to by then."""

    def __init__(self, arrival: int, spurious: int) -> None:
        self.calls_left = arrival
        self.spurious = spurious
        self.armed = self.work = self.notified = False

    def _let_the_other_side_run(self, calls: int = 1) -> None:
        if not self.work and self.calls_left < calls:
            self.work, self.notified = True, self.armed
        self.calls_left -= calls

    def ready(self) -> bool:
        self._let_the_other_side_run()
        return self.work

    def arm(self) -> bool:
        self._let_the_other_side_run()
        self.armed = True
        return self.work

    def park(self, seconds: float | None) -> None:
        assert seconds is None
        if self.spurious:
            self.spurious -= 1
            return
        self._let_the_other_side_run(calls=max(1, self.calls_left + 1))
        assert self.notified, "asleep for ever: the work came before the other side was asked to notify"
        self.notified = self.armed = False


# -- adaptive ----------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that the test moves; every look at it costs a microsecond."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    def park(self, _seconds: float | None) -> None:
        self.now += 1.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("vqshm.notify.wait.time", clock)
    return clock


@pytest.mark.fault("C12")
def test_adaptive_spins_before_it_arms(clock):
    looks = iter([False] * 20)
    strategy = Adaptive(spin=50e-6)
    assert strategy.wait(lambda: next(looks, True), lambda: pytest.fail("armed"), clock.park, NEVER)


@pytest.mark.fault("C12")
def test_adaptive_spins_less_after_long_waits_and_fully_after_a_short_one(clock):
    def wait(looks_in_vain: int) -> float:
        looks = iter([False] * looks_in_vain)
        strategy.wait(lambda: next(looks, True), no, clock.park, NEVER)
        return strategy.budget

    strategy = Adaptive(spin=64e-6, yields=0)
    assert [wait(1000) for _ in range(6)] == [32e-6, 16e-6, 8e-6, 4e-6, 4e-6, 4e-6]
    assert wait(2) == 64e-6


def test_adaptive_does_not_spin_beyond_its_deadline(clock):
    assert not Adaptive(spin=1e6, yields=0).wait(no, no, must_not_park, Deadline(1e-3))
    assert clock.now < 1001


def test_adaptive_does_not_spin_on_a_single_processor(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    assert Adaptive().spin == 0


@pytest.mark.parametrize("arguments", [{"spin": -1.0}, {"spin": float("nan")}, {"yields": -1}])
def test_adaptive_refuses_senseless_numbers(arguments):
    with pytest.raises(ValueError, match="spin"):
        Adaptive(**arguments)


# -- parking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture(params=["eventfd", "semaphore"])
def notifier(request):
    if request.param == "eventfd":
        with EventFd.create() as made:
            yield made
    else:
        with Semaphore.create(f"/vqshm-test-{uuid.uuid4().hex}") as made:
            made.unlink()
            yield made


def test_parking_for_no_time_returns_at_once(notifier, pipe):
    assert park_on([notifier], pipe[:1], 0) == []


def test_parking_clears_the_notifier_that_woke_it(notifier):
    notifier.signal()
    ready = park_on([notifier], [], None)
    assert ready == ([] if notifier.fileno() is None else [notifier.fileno()])
    assert not notifier.wait(0)


def test_parking_returns_every_descriptor_that_is_ready(pipe):
    os.write(pipe[1], b"x")
    with EventFd.create() as event, EventFd.create() as silent:
        event.signal()
        assert sorted(park_on([event, silent], pipe[:1], None)) == sorted([pipe[0], event.fileno()])


def test_parking_sees_a_process_end(notifier):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    fd = os.pidfd_open(child.pid)
    try:
        assert park_on([notifier], [fd], None) == [fd]
    finally:
        os.close(fd)
        child.wait()


def test_parking_takes_descriptors_above_1024(pipe):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= 3000:
        pytest.skip("the hard limit of descriptors is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3001), hard))
    high = fcntl.fcntl(pipe[0], fcntl.F_DUPFD_CLOEXEC, 3000)
    try:
        os.write(pipe[1], b"x")
        assert park_on([], [high], None) == [high]
    finally:
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def under_alarm():
    """Run a call while a signal comes every 5 ms: a single one might come before the call sleeps, and not wake it."""
    old = signal.getsignal(signal.SIGALRM)

    def run(handler, call):
        signal.signal(signal.SIGALRM, lambda _number, _frame: handler())
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        return call()

    yield run
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def test_a_wait_goes_on_after_a_signal(notifier, under_alarm):
    rings = []

    def handler() -> None:
        rings.append(None)
        if len(rings) == 3:
            notifier.signal()

    assert under_alarm(handler, notifier.wait)
    assert len(rings) >= 3


def interrupt() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def test_ctrl_c_ends_a_wait_for_ever(notifier, under_alarm):
    with pytest.raises(KeyboardInterrupt):
        under_alarm(interrupt, notifier.wait)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ctrl_c_ends_every_strategy(strategy, notifier, under_alarm):
    def park(seconds: float | None) -> None:
        park_on([notifier], [], seconds)

    with pytest.raises(KeyboardInterrupt):
        under_alarm(interrupt, lambda: strategy().wait(no, no, park, NEVER))


# -- two processes -----------------------------------------------------------------------------------------------------

TURN, WANTS = 0, (64, 128)  # whose turn it is counts up; each side's "notify me", on lines of their own

PLAYER = """
import mmap, sys
from vqshm.closing import own
from vqshm.memory import atomic
from vqshm.notify import Adaptive, Block, Deadline, EventFd, park_on

def play(memory, mine, other, me, rounds, strategy):
    region = atomic.Region(memory)
    wants = (64, 128)
    turn = me
    def ready():
        return atomic.load_u32(region, 0) == turn
    def arm():
        atomic.store_u32(region, wants[me], 1)
        atomic.fence()
        return ready()
    def park(seconds):
        park_on([mine], [], seconds)
    while turn < rounds:
        assert strategy.wait(ready, arm, park, Deadline(60)), f"side {me} slept through turn {turn}"
        atomic.store_u32(region, wants[me], 0)
        atomic.store_u32(region, 0, turn + 1)
        atomic.fence()
        if atomic.load_u32(region, wants[1 - me]):
            other.signal()
        turn += 2

if __name__ == "__main__":
    fd, mine, other, rounds = map(int, sys.argv[1:5])
    strategy = {"block": Block(), "adaptive": Adaptive(2e-6, 1)}[sys.argv[5]]
    play(mmap.mmap(fd, 4096), EventFd.adopt(own(mine)), EventFd.adopt(own(other)), 1, rounds, strategy)
"""


@pytest.mark.parametrize(("name", "strategy"), [("block", Block()), ("adaptive", Adaptive(2e-6, 1))])
def test_two_processes_taking_turns_never_sleep_through_one(name, strategy):
    if not atomic.ORDERED:
        pytest.skip("the interpreted core does not order memory between processes here")
    player: dict = {"__name__": "player"}
    exec(PLAYER, player)
    fd = os.memfd_create("turns")
    os.ftruncate(fd, 4096)
    rounds = 2_000
    with EventFd.create() as mine, EventFd.create() as other, mmap.mmap(fd, 4096) as memory:
        numbers = (fd, other.fileno(), mine.fileno())
        child = subprocess.Popen(
            [sys.executable, "-c", PLAYER, *map(str, numbers), str(rounds), name],
            pass_fds=numbers,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        player["play"](memory, mine, other, 0, rounds, strategy)
        assert child.wait(60) == 0
        assert int.from_bytes(memory[:4], "little") == rounds
    os.close(fd)
