"""kill -9 at the coordinator: the data path goes on, and its name is only taken when nobody works in its region."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from vqshm_harness import BOTH, PATIENCE, coordinate, descriptors, echo_spec, new_name, pumping

from vqshm import Device, Driver
from vqshm.errors import CoordinatorGone, InvalidState, NotFound, PeerGone, StaleSession
from vqshm.host import Condition, Coordinator, ProcessId, look_at, sweep
from vqshm.host.system import names, shm


def hungry(me, name):
    """A device that takes everything, says so, and answers nothing."""
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        for number, _ in enumerate(device):
            me.send(number)


@pytest.mark.fault("D08")
@BOTH
def test_without_its_coordinator_the_data_path_goes_on_and_control_calls_say_so(make_region, notify):
    region = make_region(notify=notify)
    device = region.echo()
    with Driver.attach(region.name) as driver:
        region.coordinator.kill()
        for number in range(500):
            word = b"%d" % number
            assert driver.request(word, 64, timeout=PATIENCE) == word
        for _ in range(2):
            with pytest.raises(CoordinatorGone, match=str(region.coordinator.pid)):
                driver.reset()
        assert look_at(region.name).condition is Condition.HELD
    assert device.end() == 0  # its driver left, and nobody can give it another
    assert look_at(region.name).condition is Condition.STALE
    with pytest.raises(CoordinatorGone, match="vqshm clean"):
        Driver.attach(region.name)
    with pytest.raises(CoordinatorGone, match="vqshm clean"):
        Device.attach(region.name)


def test_a_failed_reset_without_a_coordinator_leaves_the_requests_in_the_list_of_the_next(region):
    region.echo()
    with Driver.attach(region.name) as driver:
        region.coordinator.kill()
        driver.submit([b"x"])
        with pytest.raises(CoordinatorGone):
            driver.reset()
        with pytest.raises(InvalidState, match="reset"):
            driver.submit([b"y"])


def test_a_device_without_coordinator_ends_when_its_driver_has_ended(region, start):
    device = region.echo()
    driver = start(pumping, region.name)
    driver.hear()
    driver.hear()
    region.coordinator.kill()
    driver.hear()  # the data path goes on
    driver.kill()
    assert device.end() == 0  # serve() returned: no driver will ever come


def test_an_idle_device_ends_with_its_coordinator(region):
    device = region.echo()
    region.coordinator.kill()
    assert device.end() == 0


def test_a_driver_is_told_of_its_device_s_death_without_a_coordinator(region, start):
    device = region.start(hungry)
    with Driver.attach(region.name) as driver:
        driver.submit([b"x"])
        driver.kick()
        device.hear()
        region.coordinator.kill()
        device.signal(signal.SIGKILL)
        with pytest.raises(PeerGone, match=str(device.pid)):
            list(driver.completed())


@pytest.mark.fault("D08")
@BOTH
def test_a_region_in_which_a_session_goes_on_is_not_taken_from_under_it(make_region, notify):
    """Whoever starts under the same name is told who is alive; when they have ended, the name is free."""
    region = make_region(notify=notify)
    device, driver = region.echo(), region.start(pumping)
    driver.hear()
    region.coordinator.kill()
    before = descriptors()
    assert refused(region) == {driver.pid, device.pid}
    assert descriptors() == before
    first = driver.hear()
    while driver.hear() < first + 200:
        pass  # they noticed nothing
    device.freeze()  # a stopped process has not ended
    driver.kill()
    assert refused(region) == {device.pid}
    device.kill()
    again = make_region(notify=notify, name=region.name)
    assert look_at(region.name).owner.pid == again.coordinator.pid
    again.echo()
    with Driver.attach(region.name) as fresh:
        assert fresh.request(b"both", 8, timeout=PATIENCE) == b"both"


def refused(region) -> set[int]:
    """Who keeps a coordinator from taking the name."""
    with pytest.raises(StaleSession, match="work on in its region") as caught:
        Coordinator(region.name, [echo_spec()], notify=region.notify)
    pids = set(caught.value.facts["pids"])
    assert all(f"process {pid} (" in str(caught.value) for pid in pids)
    return pids


@pytest.mark.fault("D08")
@BOTH
def test_who_closed_does_not_hold_the_name_of_a_dead_coordinator(make_region, notify):
    region = make_region(notify=notify)
    device = region.echo()
    driver = Driver.attach(region.name)
    region.coordinator.kill()
    with pytest.raises(StaleSession, match=f"process {os.getpid()} .driver of 'echo0'"):
        Coordinator(region.name, [echo_spec()], notify=notify)
    driver.close()  # its memory is still mapped: somebody may look at a view of it
    device.kill()
    with Coordinator(region.name, [echo_spec()], notify=notify):
        assert look_at(region.name).owner.pid == os.getpid()


@pytest.mark.fault("D08")
def test_cells_that_somebody_forged_hold_no_name(region):
    """They can name a living process; but not make the kernel say that it has the region open."""
    device = region.echo()
    with Driver.attach(region.name) as driver:
        parent = ProcessId.of(os.getppid())
        region.coordinator.kill()
        device.kill()
        driver.cells.driver_start_time, driver.cells.driver_pid = parent.start_time, parent.pid
        driver.cells.device_start_time, driver.cells.device_pid = 1, os.getpid()
        with Coordinator(region.name, [echo_spec()]):
            assert look_at(region.name).owner.pid == os.getpid()


@pytest.mark.fault("D08", "D10")
@BOTH
@pytest.mark.parametrize("memory", ["named", "memfd"])
def test_a_sweep_takes_the_name_of_a_dead_coordinator_s_region_when_the_last_of_its_peers_has_ended(
    make_region, start, notify, memory
):
    """However they end; one that was stopped has not."""
    if (notify, memory) == ("semaphore", "memfd"):
        pytest.skip("no such region")
    region = make_region(notify=notify, memory=memory)
    device, driver = region.echo(), start(pumping, region.name)
    driver.hear()
    region.coordinator.kill()
    assert region.name not in sweep([region.name])
    found = look_at(region.name)
    assert found.condition is Condition.HELD
    assert not found.abandoned
    assert [(session.role, session.process.pid) for session in found.holders] == [
        ("driver", driver.pid),
        ("device", device.pid),
    ]
    device.freeze()
    driver.kill()
    assert region.name not in sweep([region.name])
    assert [session.process.pid for session in look_at(region.name).holders] == [device.pid]
    device.kill()
    assert look_at(region.name).condition is Condition.STALE
    assert region.name in sweep([region.name])
    assert region.name not in names.existing()


@BOTH
def test_by_force_a_sweep_takes_a_name_from_those_who_go_on(make_region, notify):
    region, other = make_region(notify=notify), make_region(notify=notify)
    region.echo()
    other.echo()
    with Driver.attach(region.name) as driver, Driver.attach(other.name):
        region.coordinator.kill()
        other.coordinator.kill()
        assert sweep([region.name], force=True) == [region.name]
        assert look_at(other.name).condition is Condition.HELD
        assert region.name not in shm.existing()
        assert not names.socket_path(region.name).exists()
        assert not list(shm.DIRECTORY.glob(f"sem.vqshm.{region.name}*"))
        assert driver.request(b"still here", 64, timeout=PATIENCE) == b"still here"
        with pytest.raises(NotFound):
            Driver.attach(region.name)


@pytest.mark.fault("E06")
def test_a_program_that_attached_and_ended_takes_no_region_with_it(served):
    """Whatever its interpreter tidies up at its end, as the resource tracker of multiprocessing does."""
    program = (
        "import multiprocessing.resource_tracker, sys, vqshm; multiprocessing.resource_tracker.ensure_running();"
        f"driver = vqshm.Driver.attach({served.name!r}); print(driver.request(b'x', 8).decode()); sys.exit()"
    )
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert (ran.stdout, ran.stderr) == ("x\n", "")
        assert served.name in shm.existing()


# -- while it makes its region -----------------------------------------------------------------------------------------


def half_way(me, name, notify, point):
    """A coordinator that stops when it comes to a certain step of making its region, to be killed there."""
    from types import SimpleNamespace

    from vqshm.host.coordination import ground
    from vqshm.host.system import pages
    from vqshm.memory import atomic
    from vqshm.transport import manifest

    def stop(*_args, **_kwargs):
        me.send("there")
        signal.pause()

    def store(region, offset, value):
        if value:
            stop()
        atomic.store_u64(region, offset, value)

    places = {
        "mode": (os, "fchmod"),
        "pages": (os, "posix_fallocate"),
        "mapping": (pages.mmap, "mmap"),
        "doorbells": (Coordinator, "_doorbells"),
        "socket": (socket.socket, "bind"),
        "header": (ground, "write_manifest"),
    }
    if point == "magic":
        manifest.atomic = SimpleNamespace(store_u64=store, fence=atomic.fence)
    else:
        setattr(*places[point], stop)
    Coordinator(name, [echo_spec()], notify=notify)


@pytest.mark.fault("D09")
@BOTH
@pytest.mark.parametrize("point", ["mode", "pages", "mapping", "doorbells", "socket", "header", "magic"])
def test_a_region_whose_maker_was_killed_half_way_is_never_attached_to_and_swept(start, notify, point):
    name = new_name()
    maker = start(half_way, name, notify, point)
    assert maker.hear() == "there"
    for attach in (Driver.attach, Device.attach):
        with pytest.raises(InvalidState, match="half made"):
            attach(name)
    assert look_at(name).condition is Condition.IN_THE_MAKING
    maker.kill()
    for attach in (Driver.attach, Device.attach):
        with pytest.raises(InvalidState, match="half made"):
            attach(name)
    assert look_at(name).condition is Condition.HALF_MADE
    successor = start(coordinate, name, (echo_spec(),), notify)
    assert successor.hear() == "ready"
    successor.finish()
    assert not list(shm.DIRECTORY.glob(f"*vqshm.{name}*"))
