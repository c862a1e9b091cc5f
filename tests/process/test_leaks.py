"""Coming and going costs nothing that stays."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vqshm_harness import BOTH, PATIENCE, descriptors, echo_spec, new_name, wait_until

from vqshm import Coordinator, Device, Driver
from vqshm.errors import RoleTaken
from vqshm.host.system import names, shm


def mappings(pid: int | str = "self") -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("vqshm.")


@pytest.mark.fault("E08")
@BOTH
def test_two_hundred_drivers_one_after_the_other_leave_nothing_open_anywhere(make_region, notify):
    region = make_region(notify=notify)
    device = region.echo()
    with Driver.attach(region.name) as driver:
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
        theirs = held_by(region, device)
    del driver
    before = descriptors(), mappings()
    for number in range(200):
        with Driver.attach(region.name) as driver:
            assert driver.request(b"%d" % number, 8, timeout=PATIENCE) == b"%d" % number
    del driver
    assert (descriptors(), mappings()) == before
    with Driver.attach(region.name) as driver:  # with whom things stand as with the first
        assert driver.request(b"y", 8, timeout=PATIENCE) == b"y"
        wait_until(lambda: held_by(region, device) == theirs, "coordinator and device have closed what they had open")


def held_by(region, device) -> tuple[int, int, int]:
    return region.coordinator.descriptors(), device.descriptors(), mappings(device.pid)


@pytest.mark.fault("E08")
@BOTH
def test_two_hundred_devices_one_after_the_other_leave_nothing_open_anywhere(make_region, notify):
    region = make_region(notify=notify)
    with Device.attach(region.name):
        pass
    before = descriptors(), mappings()
    region.coordinator.descriptors()
    for _ in range(200):
        with Device.attach(region.name, config=b"x"):
            pass
    assert (descriptors(), mappings()) == before
    wait_until(lambda: can_take(region.name), "the role is free")


def can_take(name: str) -> bool:
    try:
        Device.attach(name).close()
    except RoleTaken:
        return False
    return True


@pytest.mark.fault("E08")
@BOTH
def test_fifty_regions_one_after_the_other_leave_nothing(notify):
    name = new_name()
    with Coordinator(name, [echo_spec(queues=4)], notify=notify):
        pass
    gc.collect()
    before = descriptors(), mappings()
    for _ in range(50):
        with Coordinator(name, [echo_spec(queues=4)], notify=notify) as coordinator:
            coordinator.step()
    del coordinator
    gc.collect()
    assert (descriptors(), mappings()) == before
    assert not list(shm.DIRECTORY.glob(f"*vqshm.{name}*"))


def test_attaches_that_fail_leave_nothing_open(region):
    def attempt():
        for call in (
            lambda: Driver.attach(region.name, timeout=0),
            lambda: Driver.attach(region.name, "nobody"),
            lambda: Driver.attach("nowhere"),
            lambda: Device.attach(region.name, features=1 << 34),
            lambda: Device.attach(region.name, config=bytes(300)),
        ):
            with pytest.raises((OSError, ValueError)):
                call()

    attempt()
    before = descriptors(), mappings()
    for _ in range(50):
        attempt()
    assert (descriptors(), mappings()) == before


def forgetful(me, name):
    """Never closes anything."""
    for _ in range(30):
        Driver.attach(name)._channel.close()
        gc.collect()
    me.send(mappings())


def test_a_process_that_never_closes_anything_gives_it_all_back_at_its_end(served, start):
    before = served.coordinator.descriptors()
    actor = start(forgetful, served.name)
    actor.hear()
    actor.finish()
    wait_until(lambda: served.coordinator.descriptors() == before, "the coordinator has closed what it had open")
    with Driver.attach(served.name, timeout=PATIENCE) as driver:
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"


@pytest.mark.fault("E06")
@pytest.mark.parametrize("role", ["Driver", "Device"])
def test_a_process_that_ends_takes_no_region_with_it(make_region, role):
    """A whole interpreter with everything that runs at its exit, which closes nothing; a resource tracker would."""
    region = make_region(echo_spec("left"), echo_spec("right"))
    region.echo("right")
    if role == "Driver":
        region.echo("left")
    code = f"from vqshm import {role}; import sys; end = {role}.attach(sys.argv[1], 'left'); print(end.plan.name)"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, region.name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
        assert region.name in shm.existing()
        with Driver.attach(region.name, "right", timeout=PATIENCE) as driver:
            assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"


def test_nothing_of_a_region_is_inherited_by_a_program_that_is_started(served, tmp_path):
    with Driver.attach(served.name), Coordinator(new_name(), [echo_spec()]):
        out, in_ = os.pipe()
        pid = os.posix_spawn("/bin/ls", ["ls", "-l", "/proc/self/fd"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, in_, 1)])
        os.close(in_)
        os.waitpid(pid, 0)
        listing = os.read(out, 65536).decode()
        os.close(out)
    assert "eventfd" not in listing
    assert "vqshm" not in listing
    assert str(names.runtime_directory()) not in listing
