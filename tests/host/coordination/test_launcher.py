"""A coordinator in a process of its own: it comes, says what is wrong, and goes with whoever opened it."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import Device, DeviceSpec, Driver, QueueSpec, core
from vqshm.devices import Echo
from vqshm.errors import DeadlineExceeded, NameInUse, NotFound, PeerGone, RuleError, StaleSession
from vqshm.host import Condition, launch, look_at
from vqshm.host.coordination.launcher import Launched, remove_leftovers, same_python
from vqshm.host.system.liveness import ProcessId

ECHO = DeviceSpec("echo0", 0x7601, (QueueSpec(8, 4096), QueueSpec(16, 8192)), config_bytes=64)
_numbers = itertools.count()


@pytest.fixture
def name():
    return f"test-launch-{os.getpid()}-{next(_numbers)}"


@pytest.fixture(params=["eventfd", "semaphore"])
def notify(request):
    return request.param


def exists(name: str) -> bool:
    try:
        look_at(name)
    except NotFound:
        return False
    return True


def test_a_region_for_the_length_of_a_block(name, notify):
    with launch(name, [ECHO], notify=notify) as region:
        assert region.name == name
        assert region.pid != os.getpid()
        assert region.core == core.kind()
        assert look_at(name).owner == ProcessId.of(region.pid)
        with Device.attach(name) as device:
            assert device.notify == notify
            assert [queue.size for queue in device.plan.queues] == [8, 16]
            assert device.plan.config_bytes == 64
        assert "running" in repr(region)
    assert region.process.returncode == 0
    assert "ended" in repr(region)
    assert not exists(name)
    region.close()  # once more


def test_what_the_coordinator_refuses_is_raised_here(name):
    with launch(name, [ECHO]):
        with pytest.raises(NameInUse, match=name):
            launch(name, [ECHO])
        assert exists(name)
    with pytest.raises(RuleError, match="no name"):
        launch("Not A Name", [ECHO])
    with pytest.raises(RuleError, match="number of devices"):
        launch(name, [])
    assert not exists(name)


def test_an_unknown_notifier(name):
    with pytest.raises(ValueError, match="one of eventfd, semaphore, not 'pigeon'"):
        launch(name, [ECHO], notify="pigeon")


def test_a_coordinator_that_ends_at_its_start(name, monkeypatch):
    monkeypatch.setattr(sys.modules["vqshm.host.coordination.launcher"], "_CODE", "raise SystemExit(7)")
    with pytest.raises(PeerGone, match="ended at its start, with status 7") as caught:
        launch(name, [ECHO])
    assert caught.value.facts["role"] == "coordinator"


def test_a_coordinator_that_does_not_start_in_time(name):
    with pytest.raises(DeadlineExceeded, match="was not ready in time"):
        launch(name, [ECHO], timeout=0)
    assert not exists(name)


def test_a_killed_coordinator_leaves_nothing(name, notify):
    with launch(name, [ECHO], notify=notify) as region:
        region.process.kill()
        region.process.wait()
        assert exists(name)
    assert not exists(name)
    assert not [path for path in Path("/dev/shm").iterdir() if name in path.name]


@pytest.mark.fault("D08")
def test_a_killed_coordinator_leaves_its_name_to_those_who_go_on(name, notify):
    with launch(name, [ECHO], notify=notify) as region:
        device = Device.attach(name)
        region.process.kill()
        region.process.wait()
    found = look_at(name)
    assert (found.condition, [session.process.pid for session in found.holders]) == (Condition.HELD, [os.getpid()])
    with pytest.raises(StaleSession, match=rf"process {os.getpid()} .*vqshm clean --force {name}"):
        launch(name, [ECHO])
    device.close()
    with launch(name, [ECHO], notify=notify):  # nobody is left: it is free
        pass
    assert not exists(name)


def test_a_coordinator_that_hangs_is_killed(name, monkeypatch):
    monkeypatch.setattr(sys.modules["vqshm.host.coordination.launcher"], "CLOSE_TIMEOUT", 0.2)
    with launch(name, [ECHO]) as region:
        os.kill(region.pid, signal.SIGSTOP)
    assert region.process.returncode == -signal.SIGKILL
    assert not exists(name)


def test_sigterm_ends_it_in_order(name, notify):
    with launch(name, [ECHO], notify=notify) as region:
        region.process.terminate()
        assert region.process.wait(30) == 128 + signal.SIGTERM
        assert not exists(name)


def test_signals_of_the_terminal_are_for_its_opener(name):
    with launch(name, [ECHO]) as region:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(region.pid, number)
        with Device.attach(name) as device:
            assert device.header.pid == region.pid
    assert region.process.returncode == 0


def test_it_goes_with_its_opener_however_that_dies(name):
    code = "import sys; from vqshm import DeviceSpec; from vqshm.host import launch\n"
    code += "region = launch(sys.argv[1], [DeviceSpec('echo0', 1)]); print(region.pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as opener:
        pidfd = os.pidfd_open(int(opener.stdout.readline()))
        assert exists(name)
        opener.kill()
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(60_000)
    os.close(pidfd)
    assert not exists(name)


def test_a_forked_child_does_not_end_it(name):
    with launch(name, [ECHO]) as region:
        if (child := os.fork()) == 0:
            try:
                region.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert region.process.poll() is None
        assert exists(name)


def test_the_living_are_not_removed(name):
    with launch(name, [ECHO]):
        remove_leftovers(name)
        assert exists(name)
    remove_leftovers(name)  # nothing is there


def test_the_child_imports_what_its_parent_imports(tmp_path, monkeypatch):
    (tmp_path / "vqshm.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "special.py").write_text("")
    monkeypatch.chdir(tmp_path)  # a folder that happens to hold another `vqshm` must not count
    command, environment = same_python()
    where = "import vqshm; print(vqshm.__file__)"
    found = subprocess.run([*command, "-c", where], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == sys.modules["vqshm"].__file__
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "vqshm.py").unlink()
    command, environment = same_python()
    subprocess.run([*command, "-c", "import special"], env=environment, check=True)


def test_a_driver_and_a_device_meet_in_it(name, notify):
    command, environment = same_python()
    code = "import sys; from vqshm import Device; from vqshm.devices import Echo\n"
    code += "with Device.attach(sys.argv[1]) as device: device.serve(Echo())"
    with (
        launch(name, [ECHO], notify=notify),
        subprocess.Popen([*command, "-c", code, name], env=environment) as process,
    ):
        with Driver.attach(name, timeout=60) as driver:
            assert driver.request(b"hello", 64, queue=1) == b"hello"
        process.kill()


def test_it_is_named_for_what_it_is(name):
    with launch(name, [ECHO]) as region:
        assert isinstance(region, Launched)
        assert name.encode() in Path(f"/proc/{region.pid}/cmdline").read_bytes()
    assert Echo.device_id == ECHO.device_id
