"""A process of this user cuts the memory that all share: who sleeps is told, and nobody touches what is gone.

Who is at work at that very moment dies of SIGBUS; only sealed memory prevents that.
"""

from __future__ import annotations

import os

import pytest
from vqshm_harness import PATIENCE, new_name, wait_until

from vqshm import Driver
from vqshm.errors import RegionShrunk, VersionMismatch, VqshmError
from vqshm.host import Coordinator, Device, look_at, open_plan
from vqshm.host.system import names, shm

PAGE = 4096


def hungry(me, name):
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        device.next_chain()
        me.send("eaten")
        me.recv()


def waiting(me, name):
    """A driver whose request is never answered."""
    with Driver.attach(name) as driver:
        me.send("up")
        driver.submit([b"x"], [8])
        driver.kick()
        try:
            list(driver.completed())
        except RegionShrunk as error:
            me.send(str(error))


def coordinating(me, name, devices):
    from vqshm_harness import coordinate

    try:
        coordinate(me, name, devices)
    except RegionShrunk as error:
        me.send(str(error))


@pytest.mark.fault("E02")
@pytest.mark.parametrize("size", [0, PAGE])
def test_who_sleeps_is_told_that_the_region_was_cut_and_does_not_touch_it(start, size):
    from vqshm_harness import echo_spec

    name = new_name()
    coordinator = start(coordinating, name, (echo_spec(),))
    assert coordinator.hear() == "ready"
    device = start(hungry, name)
    assert device.hear() == "up"
    driver = start(waiting, name)
    assert driver.hear() == "up"
    assert device.hear() == "eaten"
    for sleeper in (driver, coordinator):
        wait_until(lambda who=sleeper: "poll" in who.stack(), f"{sleeper} sleeps")
    os.truncate(shm.DIRECTORY / f"vqshm.{name}", size)
    with pytest.raises(VqshmError):  # half made, or of a size that contradicts its manifest
        Driver.attach(name)
    device.kill()  # which wakes everybody
    for victim in (driver, coordinator):
        assert "somebody cut region" in victim.hear()
        assert victim.end() == 0
    assert name not in shm.existing()
    assert not names.socket_path(name).exists()


@pytest.mark.fault("E02")
def test_sealed_memory_cannot_be_cut_by_anybody_who_has_it(make_region):
    region = make_region(memory="memfd")
    region.echo()
    with Driver.attach(region.name) as driver:
        fd, _, plan = open_plan(region.name)
        for size in (0, PAGE, plan.total_bytes + PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd.fileno(), size)
        fd.close()
        assert driver.request(b"whole", 8, timeout=PATIENCE) == b"whole"


def test_a_region_that_was_stretched_lets_nobody_in_and_goes_on(region):
    region.echo()
    with Driver.attach(region.name) as driver:
        path = shm.DIRECTORY / f"vqshm.{region.name}"
        size = path.stat().st_size
        os.truncate(path, size + PAGE)
        with pytest.raises(VersionMismatch):
            Driver.attach(region.name)
        assert driver.request(b"whole", 8, timeout=PATIENCE) == b"whole"
        os.truncate(path, size)
        driver.reset(PATIENCE)


def test_a_coordinator_removes_only_the_name_that_is_its_own(start):
    from vqshm_harness import coordinate, echo_spec

    name = new_name()
    with Coordinator(name, [echo_spec()], memory="memfd"):
        names.paper_path(name).unlink()
        names.socket_path(name).unlink()
        successor = start(coordinate, name, (echo_spec(),))
        assert successor.hear() == "ready"
    assert look_at(name).owner.pid == successor.pid
    successor.finish()
