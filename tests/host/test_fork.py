"""A handle inherited through fork is of no use in the child, and the parent does not notice that there is one."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from vqshm_harness import BOTH, PATIENCE

from vqshm import Device, Driver
from vqshm.errors import ForkedHandle, PeerGone, VqshmError

pytestmark = pytest.mark.fault("D18")


def verdict(call) -> str:
    """The name of what a call raises."""
    try:
        call()
    except VqshmError as error:
        return type(error).__name__
    return "nothing"


def forking_driver(me, name):
    """Forks, lets the child try everything, and goes on."""
    with Driver.attach(name) as driver:
        before = driver.submit([b"before"], [64])
        pid = os.fork()
        if not pid:
            calls = {
                "submit": lambda: driver.submit([b"x"]),
                "request": lambda: driver.request(b"x", 8),
                "reap": driver.reap,
                "completed": lambda: list(driver.completed()),
                "kick": driver.kick,
                "reset": driver.reset,
                "check": driver.check,
                "close": driver.close,
                "submit after close": lambda: driver.submit([b"x"]),
            }
            me.send({what: verdict(call) for what, call in calls.items()})
            os._exit(0)
        os.waitpid(pid, 0)
        driver.kick()
        me.send([request.output() for request in driver.completed(PATIENCE)])
        me.send(before.done)
        me.send([driver.request(b"%d" % number, 64, timeout=PATIENCE) for number in range(100)])
        driver.reset(PATIENCE)
        me.send(driver.request(b"after", 64, timeout=PATIENCE))


@pytest.mark.fault("D18")
@BOTH
def test_a_forked_driver_refuses_and_its_parent_goes_on(make_region, start, notify):
    region = make_region(notify=notify)
    region.echo()
    actor = start(forking_driver, region.name)
    seen = actor.hear()
    assert seen.pop("close") == "nothing"
    assert seen.pop("submit after close") in {"ForkedHandle", "InvalidState"}
    assert seen == dict.fromkeys(seen, "ForkedHandle")
    assert actor.hear() == [b"before"]
    assert actor.hear() is True
    assert actor.hear() == [b"%d" % number for number in range(100)]
    assert actor.hear() == b"after"
    actor.finish()


def forking_device(me, name):
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver(PATIENCE)
        chain = device.next_chain(PATIENCE)
        pid = os.fork()
        if not pid:
            calls = {
                "complete": lambda: device.complete(chain, 0),
                "pop": device.pop,
                "next_chain": device.next_chain,
                "wait_driver": device.wait_driver,
                "update_config": lambda: device.update_config(0, b"x"),
                "needs_reset": lambda: device.needs_reset("x"),
                "close": device.close,
            }
            me.send({what: verdict(call) for what, call in calls.items()})
            os._exit(0)
        os.waitpid(pid, 0)
        device.complete(chain, chain.writer().write(b"parent"))
        device.next_chain()


@pytest.mark.fault("D18")
@BOTH
def test_a_forked_device_refuses_and_its_parent_goes_on(make_region, notify):
    region = make_region(notify=notify)
    actor = region.start(forking_device)
    with Driver.attach(region.name) as driver:
        assert driver.request(b"x", 64, timeout=PATIENCE) == b"parent"
        seen = actor.hear()
        assert seen.pop("close") == "nothing"
        assert seen == dict.fromkeys(seen, "ForkedHandle")
        assert not driver.peer_gone


def survivor(me, name):
    """A child that lives on with everything its parent had open."""
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver(PATIENCE)
        device.next_chain(PATIENCE)
        pid = os.fork()
        if not pid:
            with contextlib.suppress(EOFError):
                me.recv()
            os._exit(0)
        me.send(pid)
        signal.pause()


@pytest.mark.fault("D18")
def test_a_killed_process_is_gone_although_its_child_lives(region):
    actor = region.start(survivor)
    with Driver.attach(region.name) as driver:
        request = driver.submit([b"x"], [8])
        driver.kick()
        child = actor.hear()
        actor.kill()
        with pytest.raises(PeerGone, match=str(actor.pid)):
            list(driver.completed(PATIENCE))
        os.kill(child, 0)
        region.echo()  # the role is free, too
        assert driver.reset(PATIENCE) == [request]
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"


def reattaching(me, name):
    with Driver.attach(name) as driver:
        handle = driver.handle
    if not os.fork():
        with handle.attach_driver() as driver:
            me.send(driver.request(b"from the child", 64, timeout=PATIENCE))
        os._exit(0)
    os.wait()


def test_a_child_may_attach_by_itself(served, start):
    assert start(reattaching, served.name).hear() == b"from the child"
    with pytest.raises(ForkedHandle):
        raise ForkedHandle
