"""SIGKILL at each step of a driver's work: the device sees whole chains or none, finishes them, and serves the next.

A driver's bytecodes are numbered as it leases, fills, offers, publishes, kicks, sleeps, reaps and releases; one driver
after the other dies at the next. On the interpreted core the steps inside the ring are among them: descriptors, ring
entry, idx. So are those of a coordinator that makes a region, hands it out, and lets go of a client.
"""

from __future__ import annotations

import os
import signal
import zlib

import pytest
from vqshm_harness import PATIENCE, Interrupter, coordinate, echo, echo_spec, new_name

from vqshm import Device, Driver, core
from vqshm.errors import CoordinatorGone, DeadlineExceeded, InvalidState, NotFound, VqshmError
from vqshm.host import driver as driver_module
from vqshm.host import ports, sweep
from vqshm.host import request as request_module
from vqshm.host.coordination import coordinator as coordinator_module
from vqshm.host.coordination import slot
from vqshm.host.system import names, shm
from vqshm.memory import pool
from vqshm.ring import split_driver

DRIVING = frozenset(
    module.__file__
    for module in (
        driver_module,
        ports,
        request_module,
        pool,
        *([split_driver] if core.kind() == "interpreted" else []),
    )
)
COORDINATING = frozenset(module.__file__ for module in (coordinator_module, names, slot, shm))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def word(number: int) -> bytes:
    """A message that says of itself whether it is whole."""
    body = b"%d;" % number * (1 + number % 40)
    return body + zlib.crc32(body).to_bytes(4, "little")


def dying(me, name, at):
    """A driver that dies at a bytecode, or says that its work was done before."""
    with Driver.attach(name, timeout=PATIENCE) as driver:
        with Interrupter(at, DRIVING, die):
            for number in range(3):
                driver.submit([word(number)[:2], word(number)[2:]], [200], tag=number)
            for request in driver.completed(PATIENCE):
                request.release()
            driver.request(word(9), 200, timeout=PATIENCE)
        me.send("done")


def checking(me, name):
    """An echo device that looks at every chain, and says when a driver has left and how many chains it had served."""
    with Device.attach(name) as device:
        me.send("up")
        while True:
            try:
                device.wait_driver()
            except InvalidState:
                return
            served = 0
            for chain in device:
                data = chain.reader().read()
                if zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:] or chain.writable_bytes != 200:
                    me.send(f"torn: {data!r}")
                device.complete(chain, chain.writer().write(data[:200]))
                served += 1
            me.send((served, device.driver_ended))


@pytest.mark.fault("D06")
@pytest.mark.parametrize("step", [pytest.param(7, marks=pytest.mark.long), 97])
def test_a_driver_may_die_at_any_bytecode(make_region, start, step):
    """At every 97th; the long test, every 7th (the numbers are prime, so loops are hit everywhere)."""
    region = make_region(echo_spec(size=8))
    device = region.start(checking)
    at, seen = 1, set()
    while True:
        driver = start(dying, region.name, at)
        code = driver.end()
        served, ended = device.hear()
        assert code in {0, -signal.SIGKILL}
        seen.add(served)
        if not code:
            assert (driver.hear(), served) == ("done", 4)
            break
        assert ended
        assert served <= 4
        at += step
    assert at > 10 * step
    assert {0, 3, 4} <= seen
    with Driver.attach(region.name, timeout=PATIENCE) as successor:
        assert successor.request(word(5), 200, timeout=PATIENCE) == word(5)
    assert device.hear() == (1, False)


def coordinating(me, name, at):
    """A coordinator that dies at a bytecode."""
    with Interrupter(at, COORDINATING, die):
        coordinate(me, name, (echo_spec(),))


@pytest.mark.fault("D09", "D10")
@pytest.mark.parametrize("step", [pytest.param(41, marks=pytest.mark.long), 397])
def test_a_coordinator_may_die_at_any_bytecode(start, step):
    """While it makes a region, hands out roles or takes them back: nothing half made is entered, all is swept."""
    at = 1
    while True:
        name = new_name()
        coordinator = start(coordinating, name, at)
        alive = comes_up(coordinator)
        if alive:
            actors = [start(echo, name), start(asking, name)]
            actors[1].end()
            coordinator.connection.close()
        code = coordinator.end()
        if alive:
            for actor in actors:
                actor.kill()
        elif not names.socket_path(name).exists():
            with pytest.raises((NotFound, InvalidState, CoordinatorGone)):
                Driver.attach(name, timeout=0)
        sweep([name])
        assert not list(shm.DIRECTORY.glob(f"*vqshm.{name}*")), at
        assert not names.socket_path(name).exists(), at
        if not code:
            break
        assert code == -signal.SIGKILL
        at += step
    assert at > 10 * step


def comes_up(coordinator) -> bool:
    """Whether it says that it is ready, before it ends."""
    try:
        return coordinator.connection.poll(PATIENCE) and coordinator.connection.recv() == "ready"
    except (EOFError, ConnectionResetError):
        return False


def asking(me, name):
    """A driver that asks once, whatever comes of it."""
    try:
        with Driver.attach(name, timeout=PATIENCE) as driver:
            driver.request(b"x", 8, timeout=PATIENCE)
            driver.reset(PATIENCE)
    except (DeadlineExceeded, VqshmError):
        return
