"""What must hold whoever calls: threads, memory that is not leaked, and objects or arguments that make no sense."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import subprocess
import sys
import threading
import tracemalloc

import pytest

from vqshm import core
from vqshm.errors import EndOfMessages, InvalidState, NoMessage, NoRoom

# -- threads -----------------------------------------------------------------------------------------------------------


def test_while_one_waits_for_room_another_thread_is_told_so_and_harms_nothing(lane):
    r = lane(2, 256)
    r.outlet.send_many([b"a", b"b"])
    taken = []

    def meanwhile():
        for attempt in (lambda: r.outlet.send(b"x", 0), lambda: r.outlet.reserve(1, 0), lambda: r.outlet.call(b"x", 1)):
            with pytest.raises(InvalidState, match="another thread waits"):
                attempt()
        taken.extend(r.drain())

    r.out.meanwhile = meanwhile
    r.outlet.send(b"c")
    assert taken + r.drain() == [b"a", b"b", b"c"]
    r.assert_at_rest()


def test_while_one_waits_for_a_message_another_thread_is_told_so_and_takes_none(lane):
    r = lane()

    def meanwhile():
        r.outlet.send(b"x")
        for attempt in (lambda: r.inlet.recv(0), lambda: r.inlet.recv_many(2, 0), lambda: r.inlet.recv_view(0)):
            with pytest.raises(InvalidState, match="another thread waits"):
                r.elsewhere(attempt)

    r.into.meanwhile = meanwhile
    assert r.inlet.recv() == b"x"
    r.assert_at_rest()


@pytest.mark.parametrize("end", ["outlet", "inlet"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, EndOfMessages, KeyError])
def test_a_wait_that_ends_by_an_exception_is_over(lane, end, error):
    r = lane(1)

    def meanwhile():
        raise error("mine")

    if end == "inlet":
        r.into.meanwhile = meanwhile
        with pytest.raises(error):
            r.inlet.recv()
    else:
        r.outlet.send(b"x")
        r.out.meanwhile = meanwhile
        with pytest.raises(error):
            r.outlet.send(b"y")
        with pytest.raises(error):
            r.outlet.send_many([b"y"])
        assert r.drain() == [b"x"]
    r.outlet.send(b"x")
    assert r.drain() == [b"x"]
    r.assert_at_rest()


def test_a_bell_that_fails_harms_nothing(lane):
    r = lane(2)

    def broken():
        raise OSError("the other side's descriptor is gone")

    r.outlet.bell.ring = broken
    with pytest.raises(OSError, match="descriptor"):
        r.outlet.send(b"a")
    r.outlet.bell.ring = None
    r.outlet.send(b"b")
    assert r.drain() == [b"a", b"b"]
    r.assert_at_rest()


def test_threads_that_take_turns_share_an_end(lane):  # noqa: C901 - three kinds of threads
    """Two on either end, one lock for each end: nothing is lost, and what one thread sends stays in order."""
    r = lane(64, 1 << 14)
    turns, count, got, errors = {"out": threading.Lock(), "in": threading.Lock()}, 4000, [], []
    switch = sys.getswitchinterval()

    def send(name):
        done = 0
        while done < count and not errors:
            with turns["out"]:
                try:
                    r.outlet.send_many([b"%s %d" % (name, i) for i in range(done, min(done + 7, count))], 0)
                    done = min(done + 7, count)
                except NoRoom as error:
                    done += error.facts["sent"]

    def receive():
        while len(got) < 2 * count and not errors:
            with turns["in"]:
                try:
                    got.extend(r.inlet.recv_many(5, 0))
                except NoMessage:
                    continue

    def guarded(function, *args):
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must say so
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(send, name)) for name in (b"a", b"b")]
    threads += [threading.Thread(target=guarded, args=(receive,)) for _ in range(2)]
    try:
        sys.setswitchinterval(1e-5)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert errors == []
    for name in (b"a", b"b"):
        assert [m for m in got if m.startswith(name)] == [b"%s %d" % (name, i) for i in range(count)]
    r.assert_at_rest()


# -- leaks -------------------------------------------------------------------------------------------------------------


def traffic(r, data):
    """One of everything."""
    r.outlet.send(data)
    r.outlet.send([data, data])
    r.outlet.send_many([data, bytearray(data), memoryview(data)])
    with r.outlet.reserve(len(data)) as view:
        view[:] = data
    r.outlet.reserve(5).cancel()
    r.outlet.reserve(5)
    assert r.inlet.recv(0) == data
    r.inlet.recv_many(2, 0)
    with r.inlet.recv_view(0) as view:
        assert view == data
    loan = r.inlet.recv_view(0)
    kept = loan.view[1:]
    with contextlib.suppress(InvalidState):
        loan.release()
    del loan, kept
    r.inlet.recv(0)
    r.out.meanwhile = lambda: answer(r, data)
    assert r.outlet.call(data, 100) == data
    r.out.meanwhile = None
    for attempt in (lambda: r.inlet.recv(0), lambda: r.outlet.send("text"), lambda: r.outlet.send([data, None])):
        with pytest.raises((NoMessage, TypeError)):
            attempt()
    r.inlet.tell()
    r.outlet.reclaim()


def answer(r, data):
    loan = r.inlet.recv_view(0)
    loan.reply(data)
    loan.release()


def test_nothing_is_leaked(lane):
    r, data = lane(16, 1 << 14), bytes(range(100))
    window = r.memory.regions[0].window
    for _ in range(30):  # what is kept once, is there by now
        traffic(r, data)
    gc.collect()
    references = [sys.getrefcount(x) for x in (data, r.outlet, r.inlet, r.memory, window, r.outlet.arena)]
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(300):
            traffic(r, data)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 64 * 1024
    finally:
        tracemalloc.stop()
    assert [sys.getrefcount(x) for x in (data, r.outlet, r.inlet, r.memory, window, r.outlet.arena)] == references
    assert len(gc.get_objects()) - objects < 100
    r.assert_at_rest()


@pytest.mark.long
def test_a_long_run_leaves_no_trace(lane):
    r, data = lane(16, 1 << 14), bytes(range(100))
    for size in (1000, 100_000 if core.kind() == "compiled" else 10_000):
        gc.collect()
        tracemalloc.start()
        for _ in range(size):
            r.outlet.send(data)
            r.inlet.recv(0)
            r.outlet.send(data)
            with r.inlet.recv_view(0):
                pass
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert grown < 32 * 1024
    assert sys.getrefcount(data) == 2


def test_ends_that_refer_to_each_other_are_freed(lane):
    r = lane()
    r.out.meanwhile = r.outlet.reclaim
    r.outlet.send(b"x")
    loan = r.inlet.recv_view(0)
    assert loan.view == b"x"
    reservation = r.outlet.reserve(4)
    assert reservation.view == bytes(4)
    buffer = r.bytes
    r.memory.own = r
    del r, loan, reservation
    gc.collect()
    buffer.append(1)  # nobody holds it any more


# -- objects and arguments that make no sense --------------------------------------------------------------------------

PRELUDE = """
from vqshm.errors import *
from vqshm.lane.inlet import Inlet
from vqshm.lane.loan import Loan
from vqshm.lane.call import Call
from vqshm.lane.holdings import Holdings
from vqshm.lane.outlet import Outlet
from vqshm.lane.reservation import Reservation
from vqshm.memory import GuestMemory, Region
from vqshm.memory.arena import Arena
from vqshm.memory.lent import Lent
from vqshm.notify.spin import Pace
from vqshm.ring.chain import DescriptorChain
from vqshm.ring.walk import Walk
from vqshm.ring.split_device import DeviceQueue
from vqshm.ring.split_driver import DriverQueue

GARBAGE = (None, -1, 0, 1, 7, 2**31, 2**62, 2**64, 0.5, float("nan"), b"x", "x", [], [b"x"], object())


def attempt(call):
    try:
        call()
    except Exception:
        return


def every_method(name, make):
    for method in sorted(set(dir(make())) - set(dir(object)) - {"__setstate__"}):
        for arguments in [(), *[(x,) for x in GARBAGE], *[(x, 0) for x in GARBAGE], *[(x, x) for x in GARBAGE],
                          *[(1, x) for x in GARBAGE], *[(x, 0, 0) for x in GARBAGE], *[(x, x, x) for x in GARBAGE]]:
            thing = make()
            attempt(lambda: getattr(thing, method)(*arguments))
        for value in GARBAGE:  # what can be set, is set; then everything is called
            thing = make()
            try:
                setattr(thing, method, value)
            except Exception:
                continue
            for other in ("send", "send_many", "recv", "recv_view", "reclaim", "tell", "look", "take", "view"):
                for arguments in ((b"x", 0), (0,), ()):
                    attempt(lambda: getattr(thing, other)(*arguments))
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-2000:]}"
    assert done.stdout.endswith("alive\n")


@pytest.mark.skipif(core.kind() != "compiled", reason="interpreted, nothing can crash")
@pytest.mark.parametrize(
    "name",
    [
        *("Arena", "Call", "DescriptorChain", "DeviceQueue", "DriverQueue", "Holdings", "Inlet", "Lent"),
        *("Loan", "Outlet", "Pace", "Reservation", "Walk"),
    ],
)
def test_an_object_that_was_never_initialised_raises_but_does_not_crash(name):
    run(f"every_method({name!r}, lambda: {name}.__new__({name})); print('alive')")


RIG = """
from vqshm.ring import SplitLayout
from vqshm.lane.keeper import ALONE

class Bell:
    def signal(self): pass

def lane(end):
    layout = SplitLayout.at(0x10000, 8)
    memory = GuestMemory([(0x10000, bytearray(layout.end - 0x10000 + 4096))])
    outlet = Outlet(memory, layout, (layout.end, 4096), Bell(), ALONE)
    inlet = Inlet(memory, layout, Bell(), ALONE)
    for _ in range(3):
        outlet.send(b"message")
    loan, reservation = inlet.recv_view(0), outlet.reserve(10)
    loan.view, reservation.view
    KEEP[:] = [outlet, inlet]
    return vars()[end]

KEEP = []
"""


@pytest.mark.skipif(core.kind() != "compiled", reason="interpreted, nothing can crash")
@pytest.mark.parametrize("name", ["Arena", "Inlet", "Lent", "Loan", "Outlet", "Pace", "Reservation", "Walk"])
def test_a_state_from_nowhere_does_not_crash(name):
    """Cython gives each class a `__setstate__` unless it is told not to."""
    states = "((), [], (1,), None, (1, 2, 3))"
    code = f"[attempt(lambda: {name}.__new__({name}).__setstate__(state)) for state in {states}]; print('alive')"
    run(code)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["outlet", "inlet", "loan", "reservation"])
def test_what_exists_once_cannot_be_copied(lane, name, how):
    """Two of them would give the same message back twice."""
    r = lane()
    r.outlet.send(b"abc")
    things = {"outlet": r.outlet, "inlet": r.inlet, "loan": r.inlet.recv_view(0), "reservation": r.outlet.reserve(3)}
    with pytest.raises(TypeError):
        how(things[name])
    things["loan"].release()
    things["reservation"].cancel()
    r.assert_at_rest()


@pytest.mark.skipif(core.kind() != "compiled", reason="interpreted, nothing can crash")
@pytest.mark.parametrize("end", ["outlet", "inlet", "loan", "reservation"])
def test_garbage_for_arguments_raises_but_does_not_crash(end):
    run(RIG + f"every_method({end!r}, lambda: lane({end!r})); print('alive')")


@pytest.mark.skipif(core.kind() != "compiled", reason="interpreted, nothing can crash")
@pytest.mark.parametrize(
    "make",
    [
        "Arena(4096, 8)",
        "Lent(Region(bytearray(64)), 0, 8, True)",
        "Pace(0)",
        "lane('outlet').arena",
        "lane('outlet').pace",
    ],
)
def test_garbage_for_the_parts_raises_but_does_not_crash(make):
    run(RIG + f"every_method({make!r}, lambda: {make}); print('alive')")
